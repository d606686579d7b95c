//! The loss that keeps the experts of mixtures in balance.

use crate::Result;
use crate::backend::{Backend, MixtureActs, RouterLoss};
use crate::model::{Mixtures, ModelConfig};

/// The routers' loss of passes: see [`MixtureOperations::router_loss`](crate::backend::MixtureOperations::router_loss).
#[derive(Debug)]
pub(crate) struct RouterBalance<B: Backend> {
    loss: RouterLoss<B::Buffer>,
    /// `c` of a pass.
    factor: f32,
    /// Layers of the pass so far that have a mixture.
    layers: usize,
}

impl<B: Backend> RouterBalance<B> {
    /// `None` for a model without such a loss.
    pub(super) fn new(backend: &B, config: &ModelConfig) -> Option<Self> {
        let Mixtures { experts, router_loss, .. } = config.mixtures.as_ref()?;
        let of_experts = || backend.zeros(*experts);
        let loss = RouterLoss {
            loads: [of_experts(), of_experts()],
            of_probabilities: of_experts(),
            sum: backend.zeros(1),
        };
        router_loss.map(|factor| Self { loss, factor: factor as f32, layers: 0 })
    }

    /// Begins to add up the losses of passes, each of which counts `share`.
    pub(super) fn begin_sum(&mut self, backend: &B, config: &ModelConfig, share: f64) {
        backend.clear(&mut self.loss.sum);
        self.factor = (config.router_loss().unwrap_or(0.0) * share) as f32;
    }

    /// The sum since then.
    ///
    /// # Errors
    /// As [`Backend::check`].
    pub(super) fn sum(&self, backend: &B) -> Result<f64> {
        backend.to_host(&self.loss.sum).map(|sum| f64::from(sum[0]))
    }

    pub(super) fn begin_pass(&mut self, backend: &B) {
        self.layers = 0;
        self.loss.loads.iter_mut().for_each(|load| backend.clear(load));
    }

    /// Adds a layer of a pass of `rows` tokens.
    pub(super) fn add(&mut self, backend: &mut B, acts: &MixtureActs<B::Buffer, B::Routes>, rows: usize) {
        self.layers += 1;
        backend.router_load(acts, rows, &mut self.loss.loads);
    }

    /// The loss of the layers of a pass of `rows` tokens.
    pub(super) fn end_pass(&mut self, backend: &mut B, rows: usize) {
        backend.router_loss(&mut self.loss, self.layers * rows, self.factor);
    }

    /// Of the probability of each expert, for every token of the last pass.
    pub(super) fn of_probabilities(&self) -> &B::Buffer {
        &self.loss.of_probabilities
    }
}
