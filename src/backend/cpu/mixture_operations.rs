//! The mixtures of experts of the CPU.

use super::backend::Cpu;
use super::weight::Weight;
use super::{mixture, routes};
use crate::backend::{
    MixtureActs, MixtureGradients, MixtureOperations, MixtureWeights, PackedMixtureGradients,
    PackedMixtureWeights, RouterLoss, Routes,
};

fn mixture_weights<'m, 'a>(weights: &'m MixtureWeights<'_, Weight<'a>>) -> mixture::Weights<'m, 'a> {
    let MixtureWeights { router, experts, shared, routing, layer: _ } = weights;
    mixture::Weights { router, experts, shared: *shared, routing: *routing }
}

impl<'a> MixtureOperations for Cpu<'a> {
    type Routes = Routes;

    fn routes(&self, _: usize, _: usize, _: usize) -> Routes {
        Routes::default()
    }

    fn mixture_forward(
        &mut self,
        (x, rows): (&Vec<f32>, usize),
        weights: &MixtureWeights<'_, Weight<'a>>,
        acts: &mut MixtureActs<Vec<f32>>,
        out: Option<&mut Vec<f32>>,
    ) {
        let weights = mixture_weights(weights);
        let x = &x[..rows * weights.router.cols];
        self.mixture.forward(x, &weights, acts, out.map(Vec::as_mut_slice), &mut self.panel);
    }

    fn mixture_backward(
        &mut self,
        (dout, x, rows): (&Vec<f32>, &Vec<f32>, usize),
        weights: &MixtureWeights<'_, Weight<'a>>,
        gradients: MixtureGradients<'_, Vec<f32>>,
        acts: &mut MixtureActs<Vec<f32>>,
        dx: Option<&mut Vec<f32>>,
    ) {
        let weights = mixture_weights(weights);
        let n = rows * weights.router.cols;
        let (inputs, dx) = ((&dout[..n], &x[..n]), dx.map(Vec::as_mut_slice));
        self.mixture.backward(inputs, &weights, gradients, acts, dx, &mut self.panel);
    }

    fn router_load(&mut self, acts: &MixtureActs<Vec<f32>>, rows: usize, loads: &mut [Vec<f32>; 2]) {
        routes::add_load(&acts.probabilities, &acts.routes, rows, loads);
    }

    fn router_loss(&mut self, loss: &mut RouterLoss<Vec<f32>>, tokens: usize, factor: f32) {
        routes::loss(loss, tokens, factor);
    }

    fn packed_experts(&self) -> bool {
        true
    }

    fn packed_mixture_forward(
        &mut self,
        x: (&Vec<f32>, usize),
        weights: &PackedMixtureWeights<'_, Weight<'a>>,
        acts: &mut MixtureActs<Vec<f32>>,
        out: Option<&mut Vec<f32>>,
    ) {
        self.packed_mixture.forward(x, weights, acts, out, &mut self.panel);
    }

    fn packed_mixture_backward(
        &mut self,
        inputs: (&Vec<f32>, &Vec<f32>, usize),
        weights: &PackedMixtureWeights<'_, Weight<'a>>,
        gradients: PackedMixtureGradients<'_, Vec<f32>>,
        acts: &mut MixtureActs<Vec<f32>>,
        dx: Option<&mut Vec<f32>>,
    ) {
        self.packed_mixture.backward(inputs, weights, gradients, acts, dx, &mut self.panel);
    }
}
