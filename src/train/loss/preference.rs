//! Direct preference optimization: losses of pairs of answers, one chosen and one rejected, to one prompt.
//!
//! With `r = log π(answer) − log π_ref(answer)`, summed over the tokens of the answer, and `h = r_chosen − r_rejected`.
//! Source: Rafailov et al. 2023, arXiv:2305.18290; names and formulas are those of TRL's `DPOTrainer`.

use serde::{Deserialize, Serialize};

/// The formula of the loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LossType {
    /// `−log σ(β h)`. Rafailov et al. 2023, arXiv:2305.18290.
    Sigmoid,
    /// `max(0, 1 − β h)`. SLiC-HF, Zhao et al. 2023, arXiv:2305.10425.
    Hinge,
    /// `(r_chosen / n_chosen − r_rejected / n_rejected − 1 / (2 β))²` with the `n` tokens of an answer. IPO, Azar et
    /// al. 2023, arXiv:2310.12036, normalized by length as its authors told those of TRL.
    Ipo,
    /// `(−(1 − ε) log σ(β h) + ε log σ(−β h)) / (1 − 2 ε)`, where a share `ε` of the labels is flipped. Chowdhury et
    /// al. 2024, arXiv:2403.00409.
    Robust,
}

/// A preference loss with its constants.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PreferenceLoss {
    /// The formula.
    pub loss_type: LossType,
    /// The strength of the reference, `β` above 0.
    pub beta: f64,
    /// The share of flipped labels that [`LossType::Robust`] assumes, `ε` in 0 to below 0.5.
    pub label_smoothing: f64,
}

/// An answer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Answer {
    /// Its log-probability under the model.
    pub(crate) log_prob: f64,
    /// Its log-probability under the reference model.
    pub(crate) reference: f64,
    /// Its tokens.
    pub(crate) tokens: usize,
}

impl Answer {
    fn log_ratio(&self) -> f64 {
        self.log_prob - self.reference
    }
}

/// Two answers to one prompt.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Pair {
    pub(crate) chosen: Answer,
    pub(crate) rejected: Answer,
}

/// The loss of a pair with its derivatives.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct PairLoss {
    pub(crate) loss: f64,
    /// By the log-probability of the chosen answer.
    pub(crate) by_chosen: f64,
    /// By the log-probability of the rejected answer.
    pub(crate) by_rejected: f64,
}

impl PreferenceLoss {
    /// The loss of a pair.
    pub(crate) fn of(&self, Pair { chosen, rejected }: Pair) -> PairLoss {
        let Self { loss_type, beta, label_smoothing } = *self;
        let logit = beta * (chosen.log_ratio() - rejected.log_ratio());
        let by_logit =
            |loss: f64, slope: f64| PairLoss { loss, by_chosen: beta * slope, by_rejected: -beta * slope };
        match loss_type {
            LossType::Sigmoid => by_logit(-log_sigmoid(logit), -sigmoid(-logit)),
            LossType::Hinge => by_logit((1.0 - logit).max(0.0), if logit < 1.0 { -1.0 } else { 0.0 }),
            LossType::Robust => {
                let (clean, flipped) = (1.0 - label_smoothing, label_smoothing);
                let loss = -clean * log_sigmoid(logit) + flipped * log_sigmoid(-logit);
                let slope = -clean * sigmoid(-logit) - flipped * sigmoid(logit);
                by_logit(loss / (clean - flipped), slope / (clean - flipped))
            }
            LossType::Ipo => {
                let [n_chosen, n_rejected] = [chosen, rejected].map(|answer| answer.tokens.max(1) as f64);
                let off =
                    chosen.log_ratio() / n_chosen - rejected.log_ratio() / n_rejected - 1.0 / (2.0 * beta);
                PairLoss {
                    loss: off * off,
                    by_chosen: 2.0 * off / n_chosen,
                    by_rejected: -2.0 * off / n_rejected,
                }
            }
        }
    }
}

fn sigmoid(x: f64) -> f64 {
    log_sigmoid(x).exp()
}

/// `log σ(x)`, exact to rounding for large `|x|` too.
fn log_sigmoid(x: f64) -> f64 {
    x.min(0.0) - (-x.abs()).exp().ln_1p()
}

/// Means over the pairs of a step, by TRL's names.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct PreferenceMetrics {
    /// `β r` of the chosen answer.
    #[serde(rename = "rewards/chosen")]
    pub rewards_chosen: f64,
    /// `β r` of the rejected answer.
    #[serde(rename = "rewards/rejected")]
    pub rewards_rejected: f64,
    /// Share of the pairs whose chosen answer has the larger reward.
    #[serde(rename = "rewards/accuracies")]
    pub rewards_accuracies: f64,
    /// Difference of the rewards.
    #[serde(rename = "rewards/margins")]
    pub rewards_margins: f64,
    /// Log-probability of the chosen answer under the model.
    #[serde(rename = "logps/chosen")]
    pub logps_chosen: f64,
    /// Log-probability of the rejected answer under the model.
    #[serde(rename = "logps/rejected")]
    pub logps_rejected: f64,
}

impl PreferenceMetrics {
    /// Adds a pair that counts with `weight`.
    pub(crate) fn add(&mut self, weight: f64, beta: f64, Pair { chosen, rejected }: &Pair) {
        let (of_chosen, of_rejected) = (beta * chosen.log_ratio(), beta * rejected.log_ratio());
        self.rewards_chosen += weight * of_chosen;
        self.rewards_rejected += weight * of_rejected;
        self.rewards_accuracies += weight * f64::from(u8::from(of_chosen > of_rejected));
        self.rewards_margins += weight * (of_chosen - of_rejected);
        self.logps_chosen += weight * chosen.log_prob;
        self.logps_rejected += weight * rejected.log_prob;
    }

    /// Names and values.
    pub fn named(&self) -> [(&'static str, f64); 6] {
        [
            ("rewards/chosen", self.rewards_chosen),
            ("rewards/rejected", self.rewards_rejected),
            ("rewards/accuracies", self.rewards_accuracies),
            ("rewards/margins", self.rewards_margins),
            ("logps/chosen", self.logps_chosen),
            ("logps/rejected", self.logps_rejected),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Central differences of the loss.
    #[test]
    fn derivatives_are_those_of_the_loss() {
        let answer = |log_prob, reference, tokens| Answer { log_prob, reference, tokens };
        for loss_type in [LossType::Sigmoid, LossType::Hinge, LossType::Ipo, LossType::Robust] {
            let loss = PreferenceLoss { loss_type, beta: 0.3, label_smoothing: 0.1 };
            for (c, r) in [(-20.0, -31.0), (-44.0, -17.0), (-9.0, -9.5), (-900.0, -3.0)] {
                let at = |c, r| loss.of(Pair { chosen: answer(c, -21.0, 7), rejected: answer(r, -19.0, 4) });
                let found = at(c, r);
                let by_chosen = (at(c + 1e-4, r).loss - at(c - 1e-4, r).loss) / 2e-4;
                let by_rejected = (at(c, r + 1e-4).loss - at(c, r - 1e-4).loss) / 2e-4;
                assert!((found.by_chosen - by_chosen).abs() < 1e-6, "{loss_type:?} {c} {r}: {found:?}");
                assert!((found.by_rejected - by_rejected).abs() < 1e-6, "{loss_type:?} {c} {r}: {found:?}");
            }
        }
    }

    /// `log σ(0) = −log 2`, `log σ(−800) = −800`.
    #[test]
    fn log_sigmoid_neither_overflows_nor_cancels() {
        assert!((log_sigmoid(0.0) + std::f64::consts::LN_2).abs() < 1e-15);
        assert!((log_sigmoid(-800.0) + 800.0).abs() < 1e-9);
        assert!((log_sigmoid(40.0) + (-40f64).exp()).abs() < 1e-30);
    }
}
