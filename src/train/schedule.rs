//! Learning-rate schedules, as `transformers` computes them.

/// How the learning rate changes over a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Scheduler {
    /// Down to 0 in a straight line.
    #[default]
    Linear,
    /// Down to 0 along half a cosine.
    Cosine,
    /// No change, and no warm-up.
    Constant,
    /// No change after the warm-up.
    ConstantWithWarmup,
    /// Warm-up, stable, then down to 0 in a straight line over the last tenth of the steps.
    Wsd,
}

/// A schedule over the steps of a round.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// Its shape.
    pub scheduler: Scheduler,
    /// The highest learning rate.
    pub peak: f64,
    /// Steps over which it rises from 0.
    pub warmup: u64,
    /// Steps of the round.
    pub total: u64,
}

impl Schedule {
    /// The learning rate of step `step`, counted from 0.
    pub fn at(&self, step: u64) -> f64 {
        let Self { scheduler, peak, warmup, total } = *self;
        if scheduler == Scheduler::Constant {
            return peak;
        }
        if step < warmup {
            return peak * step as f64 / warmup as f64;
        }
        let left = |from: u64| {
            let span = total.saturating_sub(from).max(1);
            (total.saturating_sub(step) as f64 / span as f64).min(1.0)
        };
        peak * match scheduler {
            Scheduler::Constant | Scheduler::ConstantWithWarmup => 1.0,
            Scheduler::Linear => left(warmup),
            Scheduler::Cosine => 0.5 * (1.0 + ((1.0 - left(warmup)) * std::f64::consts::PI).cos()),
            Scheduler::Wsd => left((total - total / 10).max(warmup)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From `transformers.get_scheduler(name, …, num_warmup_steps=3, num_training_steps=10)` at lr 1.
    #[test]
    fn agrees_with_transformers() {
        let third = [0.0, 1.0 / 3.0, 2.0 / 3.0];
        let cosine = [1.0, 0.950_484_4, 0.811_744_9, 0.611_260_5, 0.388_739_5, 0.188_255_1, 0.049_515_6];
        let linear = [1.0, 0.857_142_9, 0.714_285_7, 0.571_428_6, 0.428_571_4, 0.285_714_3, 0.142_857_1];
        for (scheduler, after) in [
            (Scheduler::Cosine, cosine),
            (Scheduler::Linear, linear),
            (Scheduler::ConstantWithWarmup, [1.0; 7]),
        ] {
            let schedule = Schedule { scheduler, peak: 1.0, warmup: 3, total: 10 };
            for (step, expected) in third.into_iter().chain(after).enumerate() {
                let got = schedule.at(step as u64);
                assert!((got - expected).abs() < 1e-6, "{scheduler:?} at {step}: {got}");
            }
        }
    }

    #[test]
    fn ends_are_where_they_should_be() {
        let at = |scheduler, step| Schedule { scheduler, peak: 2.0, warmup: 0, total: 20 }.at(step);
        assert_eq!((at(Scheduler::Constant, 19), at(Scheduler::Linear, 0)), (2.0, 2.0));
        assert_eq!((at(Scheduler::Wsd, 17), at(Scheduler::Wsd, 18), at(Scheduler::Wsd, 19)), (2.0, 2.0, 1.0));
        assert_eq!(Schedule { scheduler: Scheduler::Linear, peak: 1.0, warmup: 5, total: 2 }.at(9), 0.0);
    }
}
