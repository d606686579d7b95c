//! The trait `MixtureOperations`: the mixtures of experts of a device.

use super::mixture::{MixtureActs, MixtureGradients, MixtureWeights, RouterLoss};
use super::packed_mixture::{PackedMixtureGradients, PackedMixtureWeights};
use super::updates::Updates;

/// The operations of mixtures of experts.
pub trait MixtureOperations: Updates {
    /// Which token of a mixture of experts has which expert.
    type Routes: std::fmt::Debug;

    /// Room for the routes of `tokens` tokens to `per_token` each of `experts` experts.
    fn routes(&self, tokens: usize, per_token: usize, experts: usize) -> Self::Routes;
    /// Adds to `out`, unless it is `None`, the output of a mixture of experts for `rows` rows of `x`, `[rows, D]`: of each of a
    /// token's most probable experts times its weight, and of the shared expert times its share. Fedus et al. 2021,
    /// arXiv:2101.03961; Jiang et al. 2024, arXiv:2401.04088.
    fn mixture_forward(
        &mut self,
        x: (&Self::Buffer, usize),
        weights: &MixtureWeights<'_, Self::Weight>,
        acts: &mut MixtureActs<Self::Buffer, Self::Routes>,
        out: Option<&mut Self::Buffer>,
    );
    /// Overwrites `dx`, unless it is `None`, and writes `gradients`, from the gradient of the output and the input, each of the
    /// same number of rows; overwrites `acts`.
    fn mixture_backward(
        &mut self,
        inputs: (&Self::Buffer, &Self::Buffer, usize),
        weights: &MixtureWeights<'_, Self::Weight>,
        gradients: MixtureGradients<'_, Self::Buffer>,
        acts: &mut MixtureActs<Self::Buffer, Self::Routes>,
        dx: Option<&mut Self::Buffer>,
    );
    /// Adds to `loads` how the router of a mixture divided `rows` tokens: as many counts and sums as there are experts.
    fn router_load(
        &mut self,
        acts: &MixtureActs<Self::Buffer, Self::Routes>,
        rows: usize,
        loads: &mut [Self::Buffer; 2],
    );
    /// Adds to `sum` the loss `c · N · Σ f · P` over the `N` experts, and overwrites the gradients of probabilities with
    /// `c · N · f / tokens`: `f` is the share of `tokens` that have an expert, `P` the mean of its probability, where `loads`
    /// are those of `tokens` tokens of all layers together; `c` is `factor`. Fedus et al. 2021, arXiv:2101.03961, equations 4
    /// to 6, as transformers computes it.
    fn router_loss(&mut self, loss: &mut RouterLoss<Self::Buffer>, tokens: usize, factor: f32);
    /// Whether mixtures of packed experts, and attention with sinks, are computed.
    fn packed_experts(&self) -> bool;
    /// As [`MixtureOperations::mixture_forward`], of packed experts.
    fn packed_mixture_forward(
        &mut self,
        x: (&Self::Buffer, usize),
        weights: &PackedMixtureWeights<'_, Self::Weight>,
        acts: &mut MixtureActs<Self::Buffer, Self::Routes>,
        out: Option<&mut Self::Buffer>,
    );
    /// As [`MixtureOperations::mixture_backward`], of packed experts.
    fn packed_mixture_backward(
        &mut self,
        inputs: (&Self::Buffer, &Self::Buffer, usize),
        weights: &PackedMixtureWeights<'_, Self::Weight>,
        gradients: PackedMixtureGradients<'_, Self::Buffer>,
        acts: &mut MixtureActs<Self::Buffer, Self::Routes>,
        dx: Option<&mut Self::Buffer>,
    );
}
