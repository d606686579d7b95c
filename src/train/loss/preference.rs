//! Losses of pairs of answers, one chosen and one rejected, to one prompt.
//!
//! Direct preference optimization: with `r = log π(answer) − log π_ref(answer)`, summed over the tokens of the answer, and
//! `h = r_chosen − r_rejected`. Source: Rafailov et al. 2023, arXiv:2305.18290; names and formulas are those of TRL's
//! `DPOTrainer`.
//!
//! Without a reference model: `a = log π(answer) / n`, the mean over the `n` tokens of the answer. Formulas of SimPO as in
//! TRL's `CPOTrainer` with `loss_type="simpo"` and `cpo_alpha=0`, of ORPO as in its `ORPOTrainer`.

use serde::{Deserialize, Serialize};

/// The formula of the loss.
#[derive(Debug, Clone, Copy, PartialEq)]
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
    /// `−(1 − ε) log σ(z) − ε log σ(−z)` with `z = β (a_chosen − a_rejected) − γ`. SimPO, Meng et al. 2024,
    /// arXiv:2405.14734.
    Simpo {
        /// The margin `γ` by which the reward of the chosen answer is to exceed that of the rejected one.
        gamma: f64,
    },
    /// `−β log σ(log odds(a_chosen) − log odds(a_rejected))` with `odds(a) = eᵃ / (1 − eᵃ)`, and the mean negative
    /// log-likelihood of the chosen answers and their prompts. ORPO, Hong et al. 2024, arXiv:2403.07691, whose `λ` is
    /// this `β`.
    Orpo,
}

impl LossType {
    /// Whether the loss measures from a reference model.
    pub fn has_reference(self) -> bool {
        !matches!(self, Self::Simpo { .. } | Self::Orpo)
    }

    /// Whether the chosen answers and their prompts are learnt by their negative log-likelihood too.
    pub(crate) fn adds_likelihood(self) -> bool {
        self == Self::Orpo
    }
}

/// A preference loss with its constants.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PreferenceLoss {
    /// The formula.
    pub loss_type: LossType,
    /// The strength of the reference or the scale of the reward, `β` above 0.
    pub beta: f64,
    /// The share of flipped labels that [`LossType::Robust`] and [`LossType::Simpo`] assume, `ε` in 0 to below 0.5.
    pub label_smoothing: f64,
}

/// An answer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Answer {
    /// Its log-probability under the model.
    pub(crate) log_prob: f64,
    /// Its log-probability under the reference model; 0 for a loss without one.
    pub(crate) reference: f64,
    /// Its tokens.
    pub(crate) tokens: usize,
}

impl Answer {
    fn log_ratio(&self) -> f64 {
        self.log_prob - self.reference
    }

    /// The mean over its tokens of their log-probability.
    fn mean_log_prob(&self) -> f64 {
        self.log_prob / self.tokens.max(1) as f64
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
            LossType::Simpo { gamma } => {
                let z = beta * (chosen.mean_log_prob() - rejected.mean_log_prob()) - gamma;
                let (clean, flipped) = (1.0 - label_smoothing, label_smoothing);
                let slope = beta * (flipped * sigmoid(z) - clean * sigmoid(-z));
                PairLoss {
                    loss: -clean * log_sigmoid(z) - flipped * log_sigmoid(-z),
                    by_chosen: slope / chosen.tokens.max(1) as f64,
                    by_rejected: -slope / rejected.tokens.max(1) as f64,
                }
            }
            LossType::Orpo => odds_ratio_loss(beta, chosen, rejected),
        }
    }
}

/// The log of the odds ratio of two answers.
fn log_odds_ratio(chosen: &Answer, rejected: &Answer) -> f64 {
    let [a, b] = [chosen, rejected].map(Answer::mean_log_prob);
    (a - b) - (log_one_minus_exp(a) - log_one_minus_exp(b))
}

fn odds_ratio_loss(beta: f64, chosen: Answer, rejected: Answer) -> PairLoss {
    let [a, b] = [&chosen, &rejected].map(Answer::mean_log_prob);
    // σ(−log odds ratio) / (1 − eᵃ), written so that it has no pole where the chosen answer is certain.
    let by_chosen = ((a - b).exp() * -b.exp_m1() - a.exp_m1()).recip();
    let by_rejected = by_chosen * (a.exp_m1() / b.exp_m1());
    PairLoss {
        loss: -beta * log_sigmoid(log_odds_ratio(&chosen, &rejected)),
        by_chosen: -beta * by_chosen / chosen.tokens.max(1) as f64,
        by_rejected: beta * by_rejected / rejected.tokens.max(1) as f64,
    }
}

/// `log(1 − eˣ)` for `x` below 0, without cancellation. Mächler 2012, "Accurately computing log(1 − exp(−|a|))".
fn log_one_minus_exp(x: f64) -> f64 {
    if x < -std::f64::consts::LN_2 { (-x.exp()).ln_1p() } else { (-x.exp_m1()).ln() }
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
    /// Log-probability of the chosen answer under the model, summed over its tokens; their mean without a reference.
    #[serde(rename = "logps/chosen")]
    pub logps_chosen: f64,
    /// Log-probability of the rejected answer under the model, likewise.
    #[serde(rename = "logps/rejected")]
    pub logps_rejected: f64,
    /// Mean negative log-likelihood of the chosen answers and their prompts, for [`LossType::Orpo`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nll_loss: Option<f64>,
    /// `log σ` of the log of the odds ratio, as TRL names it, for [`LossType::Orpo`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_odds_ratio: Option<f64>,
    /// The log of the odds ratio, as TRL names it, for [`LossType::Orpo`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_odds_chosen: Option<f64>,
}

impl PreferenceMetrics {
    /// Adds a pair that counts with `weight`.
    pub(crate) fn add(&mut self, weight: f64, loss: &PreferenceLoss, Pair { chosen, rejected }: &Pair) {
        let PreferenceLoss { loss_type, beta, .. } = *loss;
        // What is rewarded, and what is told of the model.
        let of = |answer: &Answer| {
            if loss_type.has_reference() {
                (beta * answer.log_ratio(), answer.log_prob)
            } else {
                (beta * answer.mean_log_prob(), answer.mean_log_prob())
            }
        };
        let ((of_chosen, log_prob), (of_rejected, other_log_prob)) = (of(chosen), of(rejected));
        self.rewards_chosen += weight * of_chosen;
        self.rewards_rejected += weight * of_rejected;
        self.rewards_accuracies += weight * f64::from(u8::from(of_chosen > of_rejected));
        self.rewards_margins += weight * (of_chosen - of_rejected);
        self.logps_chosen += weight * log_prob;
        self.logps_rejected += weight * other_log_prob;
        if loss_type == LossType::Orpo {
            let log_odds = log_odds_ratio(chosen, rejected);
            *self.log_odds_ratio.get_or_insert_default() += weight * log_sigmoid(log_odds);
            *self.log_odds_chosen.get_or_insert_default() += weight * log_odds;
        }
    }

    /// Names and values.
    pub fn named(&self) -> Vec<(&'static str, f64)> {
        let always = [
            ("rewards/chosen", self.rewards_chosen),
            ("rewards/rejected", self.rewards_rejected),
            ("rewards/accuracies", self.rewards_accuracies),
            ("rewards/margins", self.rewards_margins),
            ("logps/chosen", self.logps_chosen),
            ("logps/rejected", self.logps_rejected),
        ];
        let of_orpo = [
            ("nll_loss", self.nll_loss),
            ("log_odds_ratio", self.log_odds_ratio),
            ("log_odds_chosen", self.log_odds_chosen),
        ];
        let of_orpo = of_orpo.into_iter().filter_map(|(name, value)| Some((name, value?)));
        always.into_iter().chain(of_orpo).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Central differences of the loss.
    #[test]
    fn derivatives_are_those_of_the_loss() {
        let answer = |log_prob, reference, tokens| Answer { log_prob, reference, tokens };
        let with_reference = [LossType::Sigmoid, LossType::Hinge, LossType::Ipo, LossType::Robust];
        for loss_type in with_reference.into_iter().chain([LossType::Simpo { gamma: 0.5 }, LossType::Orpo]) {
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

    /// An answer that is all but certain, one that is, and one that is all but impossible: the slope stays the limit of
    /// `−β pᵣ / (p_c (1 − pᵣ) + pᵣ (1 − p_c))`, which is `−β pᵣ / (1 − pᵣ)` at `p_c = 1`.
    #[test]
    fn odds_of_a_certain_answer_have_a_slope() {
        let loss = PreferenceLoss { loss_type: LossType::Orpo, beta: 1.0, label_smoothing: 0.0 };
        let answer = |log_prob| Answer { log_prob, reference: 0.0, tokens: 1 };
        let at = |c, r| loss.of(Pair { chosen: answer(c), rejected: answer(r) });
        for chosen in [0.0, -1e-12] {
            let found = at(chosen, -std::f64::consts::LN_2);
            assert!(found.loss.abs() < 1e-11 && (found.by_chosen + 1.0).abs() < 1e-11, "{found:?}");
            assert!(found.by_rejected.abs() < 1e-11, "{found:?}");
        }
        let found = at(-600.0, -0.1);
        assert!((found.by_chosen + 1.0).abs() < 1e-9 && found.loss.is_finite(), "{found:?}");
    }

    /// `log σ(0) = −log 2`, `log σ(−800) = −800`.
    #[test]
    fn log_sigmoid_neither_overflows_nor_cancels() {
        assert!((log_sigmoid(0.0) + std::f64::consts::LN_2).abs() < 1e-15);
        assert!((log_sigmoid(-800.0) + 800.0).abs() < 1e-9);
        assert!((log_sigmoid(40.0) + (-40f64).exp()).abs() < 1e-30);
    }
}
