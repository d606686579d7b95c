//! The forward pass with kept keys and values gives what the pass over the whole sequence gives, for every family.

use hft_surgery::backend::{Cpu, Sequences};
use hft_surgery::model::{
    Activations, Batch, Capacity, KvCache, NewTokens, Recompute, forward, forward_cached,
};

use super::{FAMILIES, Golden, load, open};

#[test]
fn pieces_of_a_sequence_give_what_the_whole_gives() {
    for name in FAMILIES {
        let ids = &Golden::read(name).ids()[3..19];
        let (checkpoint, mut cpu) = (open(name), Cpu::default());
        let model = load(&checkpoint, &|_| false);
        // Where frequencies depend on the length of the whole, no keys can be kept: `generate` refuses it.
        if model.config.ropes.iter().any(|rope| rope.longest.is_some_and(|longest| longest < ids.len())) {
            continue;
        }
        let d = model.config.hidden_size;
        let capacity = Capacity { tokens: ids.len(), positions: ids.len() };
        let acts = || Activations::new(&Cpu::default(), &model.config, capacity, Recompute::None, false);
        let (mut whole, mut pieces) = (acts(), acts());
        let batch = Batch { ids, sequences: Sequences { offsets: &[0, ids.len() as u32] } };
        let expected = &forward(&mut cpu, &model, batch, &mut whole)[..ids.len() * d];
        let mut cache = KvCache::new(&model.config);
        for range in [0..6, 6..7, 7..8, 8..13, 13..16] {
            let piece = &ids[range.clone()];
            let mut new = [NewTokens { ids: piece, branches: &[], cache: &mut cache }];
            let got = &forward_cached(&mut cpu, &model, &mut new, &mut pieces)[..piece.len() * d];
            let expected = &expected[range.start * d..range.end * d];
            let worst = got.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            let scale = expected.iter().map(|x| x.abs()).fold(0.0, f32::max);
            assert!(worst < 1e-5 * scale, "{name} {range:?}: {worst} of {scale}");
        }
    }
}
