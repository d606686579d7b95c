//! The mixtures of experts of a GPU.

use super::buffer::{Buffer, Weight};
use super::gpu::Cuda;
use super::routes::{self, Routes};
use crate::backend::{
    MixtureActs, MixtureGradients, MixtureOperations, MixtureWeights, PackedMixtureGradients,
    PackedMixtureWeights, RouterLoss,
};

/// The fault of a mixture of packed experts.
const NO_PACKED_EXPERTS: &str = "packed experts are not supported on the GPU; use --device cpu";

impl MixtureOperations for Cuda {
    type Routes = Routes;

    fn routes(&self, tokens: usize, per_token: usize, experts: usize) -> Routes {
        Routes::new(&self.context.device, tokens, per_token, experts)
    }

    fn mixture_forward(
        &mut self,
        x: (&Buffer, usize),
        weights: &MixtureWeights<'_, Weight>,
        acts: &mut MixtureActs<Buffer, Routes>,
        out: Option<&mut Buffer>,
    ) {
        self.mixture.forward(&mut self.context, x, weights, acts, out.map(|out| &*out));
    }

    fn mixture_backward(
        &mut self,
        inputs: (&Buffer, &Buffer, usize),
        weights: &MixtureWeights<'_, Weight>,
        gradients: MixtureGradients<'_, Buffer>,
        acts: &mut MixtureActs<Buffer, Routes>,
        dx: Option<&mut Buffer>,
    ) {
        self.mixture.backward(&mut self.context, inputs, weights, gradients, acts, dx.map(|dx| &*dx));
    }

    fn router_load(&mut self, acts: &MixtureActs<Buffer, Routes>, rows: usize, loads: &mut [Buffer; 2]) {
        routes::add_load(&mut self.context, &acts.probabilities, &acts.routes, rows, loads);
    }

    fn router_loss(&mut self, loss: &mut RouterLoss<Buffer>, tokens: usize, factor: f32) {
        routes::loss(&self.context, loss, tokens, factor);
    }

    fn packed_experts(&self) -> bool {
        false
    }

    fn packed_mixture_forward(
        &mut self,
        _: (&Buffer, usize),
        _: &PackedMixtureWeights<'_, Weight>,
        _: &mut MixtureActs<Buffer, Routes>,
        _: Option<&mut Buffer>,
    ) {
        self.context.device.fail(NO_PACKED_EXPERTS.to_owned());
    }

    fn packed_mixture_backward(
        &mut self,
        _: (&Buffer, &Buffer, usize),
        _: &PackedMixtureWeights<'_, Weight>,
        _: PackedMixtureGradients<'_, Buffer>,
        _: &mut MixtureActs<Buffer, Routes>,
        _: Option<&mut Buffer>,
    ) {
        self.context.device.fail(NO_PACKED_EXPERTS.to_owned());
    }
}
