//! Mixtures of experts.

use hft_surgery::backend::{Expert, MixtureActs, MixtureGradients, MixtureWeights, RouterLoss, Routing};

use super::{Maker, acts, floats, host, weight};

struct MixtureCase {
    rows: usize,
    hidden: usize,
    inner: usize,
    experts: usize,
    routing: Routing,
    shared: Option<usize>,
    /// The routers have a loss.
    loss: bool,
    /// Add to the gradients.
    accumulate: bool,
    /// All experts are equally probable.
    ties: bool,
}

fn expert<B: Maker>(b: &B, (hidden, inner): (usize, usize), seed: u64) -> Expert<B::Weight> {
    let of = |shape, seed| weight(b, shape, seed, true);
    [of((inner, hidden), seed), of((inner, hidden), seed + 1), of((hidden, inner), seed + 2)]
}

/// Output and gradients; the gates of odd experts are frozen, and those of another pass are in the gradients before.
fn mix<B: Maker>(b: &mut B, case: &MixtureCase) -> Vec<Vec<f32>> {
    let MixtureCase { rows, hidden, inner, experts: count, routing, shared, accumulate, .. } = *case;
    let mut router = weight(b, (count, hidden), 1, true);
    if case.ties {
        b.set_weight(&mut router, &vec![0.0; count * hidden]).unwrap();
    }
    let experts: Vec<_> = (0..count).map(|e| expert(b, (hidden, inner), 10 + 3 * e as u64)).collect();
    let shared_expert = shared.map(|size| (weight(b, (1, hidden), 2, true), expert(b, (hidden, size), 3)));
    let weights = MixtureWeights {
        router: &router,
        experts: experts.iter().map(|expert| expert.each_ref()).collect(),
        shared: shared_expert.as_ref().map(|(share, expert)| (share, expert.each_ref())),
        routing,
        layer: 3,
    };
    let mut kept = MixtureActs {
        probabilities: b.zeros(rows * count),
        routed: [(); 2].map(|()| b.activations(rows * routing.per_token * inner)),
        shared: shared.map(|size| [(); 2].map(|()| b.activations(rows * size))),
        routes: b.routes(rows, routing.per_token, count),
    };
    let (x, mut out) = (acts(b, rows * hidden, 5), acts(b, rows * hidden, 6));
    b.mixture_forward((&x, rows), &weights, &mut kept, Some(&mut out));
    let mut loss = RouterLoss {
        loads: [b.zeros(count), b.zeros(count)],
        of_probabilities: b.zeros(count),
        sum: floats(b, 1, 7),
    };
    b.router_load(&kept, rows, &mut loss.loads);
    b.router_load(&kept, rows, &mut loss.loads);
    b.router_loss(&mut loss, 2 * rows, 0.3);
    let mut all = host(b, &[&out, &kept.probabilities, &loss.loads[0], &loss.loads[1]]);
    all.extend(host(b, &[&loss.of_probabilities, &loss.sum]));
    let gradient = |b: &B, n: usize| floats(b, n, 8);
    let mut drouter = gradient(b, count * hidden);
    let mut dexperts: Vec<Expert<B::Buffer>> =
        (0..count).map(|_| [(); 3].map(|()| gradient(b, hidden * inner))).collect();
    let mut dshared = shared.map(|size| (gradient(b, hidden), [(); 3].map(|()| gradient(b, hidden * size))));
    let mut dx = acts(b, rows * hidden, 9);
    let gradients = MixtureGradients {
        router: Some(&mut drouter),
        experts: dexperts
            .iter_mut()
            .enumerate()
            .map(|(e, [gate, up, down])| [(e % 2 == 0).then_some(gate), Some(up), Some(down)])
            .collect(),
        shared: dshared
            .as_mut()
            .map(|(share, [gate, up, down])| (Some(share), [Some(gate), Some(up), Some(down)])),
        of_probabilities: case.loss.then_some(&loss.of_probabilities),
        accumulate,
    };
    let dout = acts(b, rows * hidden, 4);
    b.mixture_backward((&dout, &x, rows), &weights, gradients, &mut kept, Some(&mut dx));
    all.extend(host(b, &[&dx, &drouter]));
    // Those of an expert without tokens are zeros alone.
    for part in 0..3 {
        let of_part: Vec<&B::Buffer> = dexperts.iter().map(|expert| &expert[part]).collect();
        all.push(host(b, &of_part).concat());
    }
    if let Some((share, expert)) = &dshared {
        all.extend(host(b, &[share]));
        all.extend(host(b, &expert.each_ref()));
    }
    all
}

const SMALL: MixtureCase = MixtureCase {
    rows: 37,
    hidden: 33,
    inner: 19,
    experts: 5,
    routing: Routing { per_token: 2, normalised: true },
    shared: None,
    loss: false,
    accumulate: false,
    ties: false,
};

/// Odd sizes, and one token; with the loss of routers.
pub fn mixture<B: Maker>(b: &mut B) -> Vec<Vec<f32>> {
    [mix(b, &SMALL), mix(b, &MixtureCase { rows: 1, loss: true, accumulate: true, ..SMALL })].concat()
}

/// Experts of several tiles of rows and of columns, whose rows are copied 16 bytes at a time.
pub fn mixture_tiles<B: Maker>(b: &mut B) -> Vec<Vec<f32>> {
    let routing = Routing { per_token: 2, normalised: true };
    mix(b, &MixtureCase { rows: 150, hidden: 136, inner: 72, experts: 3, routing, accumulate: true, ..SMALL })
}

/// Experts of no token, a shared expert, weights that do not sum to 1.
pub fn mixture_shared<B: Maker>(b: &mut B) -> Vec<Vec<f32>> {
    let routing = Routing { per_token: 3, normalised: false };
    let case =
        MixtureCase { rows: 9, hidden: 24, experts: 40, routing, shared: Some(20), loss: true, ..SMALL };
    [mix(b, &case), mix(b, &MixtureCase { accumulate: true, ..case })].concat()
}

/// Every token has the first experts.
pub fn mixture_ties<B: Maker>(b: &mut B) -> Vec<Vec<f32>> {
    mix(b, &MixtureCase { rows: 67, hidden: 16, inner: 8, ties: true, ..SMALL })
}
