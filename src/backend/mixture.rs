//! The arguments of a mixture of experts.

/// How tokens choose their experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Routing {
    /// Experts of each token, at most as many as there are.
    pub per_token: usize,
    /// The probabilities of a token's experts are divided by their sum.
    pub normalised: bool,
}

/// An MLP `silu(x · gateᵀ) ∘ (x · upᵀ) · downᵀ`: gate and up `[F, D]`, down `[D, F]`.
pub type Expert<T> = [T; 3];

/// The weights of a mixture.
#[derive(Debug)]
pub struct MixtureWeights<'a, Weight> {
    /// `[N, D]` for `N` experts.
    pub router: &'a Weight,
    /// Each of the same size.
    pub experts: Vec<Expert<&'a Weight>>,
    /// An expert of all tokens and what its share is computed from, `[1, D]`: its output times `sigmoid(x · gateᵀ)`.
    pub shared: Option<(&'a Weight, Expert<&'a Weight>)>,
    /// How tokens choose.
    pub routing: Routing,
    /// The number of the layer, by which a device knows the tables that it has uploaded for these weights.
    pub layer: usize,
}

/// The gradients of the weights of a mixture, overwritten or added to; `None` for a frozen weight.
#[derive(Debug)]
pub struct MixtureGradients<'a, Buffer> {
    /// Of the router.
    pub router: Option<&'a mut Buffer>,
    /// Of the experts.
    pub experts: Vec<Expert<Option<&'a mut Buffer>>>,
    /// Of the shared expert and what its share is computed from.
    pub shared: Option<(Option<&'a mut Buffer>, Expert<Option<&'a mut Buffer>>)>,
    /// `[N]`, added to the gradients of the probabilities of each token.
    pub of_probabilities: Option<&'a Buffer>,
    /// Add to the gradients instead of overwriting them.
    pub accumulate: bool,
}

/// What the forward pass of a mixture leaves for its backward pass; `R` is [`MixtureOperations::Routes`](super::MixtureOperations::Routes).
#[derive(Debug)]
pub struct MixtureActs<Buffer, R = Routes> {
    /// Probability of each expert for each token, `[T, N]`, in `f32`.
    pub probabilities: Buffer,
    /// gate and up of each token in each of its experts, `[T · per_token, F]`, by expert.
    pub routed: [Buffer; 2],
    /// Those of the shared expert, `[T, F]`, where there is one.
    pub shared: Option<[Buffer; 2]>,
    /// Which token has which expert.
    pub routes: R,
}

/// The loss that keeps the experts of mixtures in balance, with its gradient; all buffers in `f32`.
#[derive(Debug)]
pub struct RouterLoss<Buffer> {
    /// Of the layers of a pass so far: tokens of each expert, `[N]`, and the sum of its probabilities, `[N]`.
    pub loads: [Buffer; 2],
    /// The gradient of the probability of each expert, for every token, `[N]`.
    pub of_probabilities: Buffer,
    /// The sum of the losses of passes, `[1]`.
    pub sum: Buffer,
}

/// Which token has which expert, on the host. A route is a token in one of its experts; routes are ordered by expert, then by token.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Routes {
    /// The routes of expert `e` are `offsets[e]..offsets[e + 1]`.
    pub offsets: Vec<usize>,
    /// The token of each route.
    pub tokens: Vec<u32>,
    /// The share of the token's output that comes from this expert.
    pub weights: Vec<f32>,
    /// The routes of token `t` are `of_tokens[per_token · t ..][..per_token]`, ascending.
    pub of_tokens: Vec<u32>,
}
