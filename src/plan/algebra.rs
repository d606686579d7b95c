//! Plans as sets of trainable tensors.

use super::mask::Mask;
use super::partition::{Origin, Plan};
use crate::{Error, Faults, Result};

impl Plan {
    /// Trainable in either plan.
    ///
    /// # Errors
    /// When the plans cover different tensors, or one has a row or element mask.
    pub fn union(&self, other: &Self) -> Result<Self> {
        self.combine(other, "union", |a, b| a || b)
    }

    /// Trainable in both plans.
    ///
    /// # Errors
    /// As [`Plan::union`].
    pub fn intersect(&self, other: &Self) -> Result<Self> {
        self.combine(other, "intersect", |a, b| a && b)
    }

    /// Trainable in this plan and not in the other.
    ///
    /// # Errors
    /// As [`Plan::union`].
    pub fn difference(&self, other: &Self) -> Result<Self> {
        self.combine(other, "difference", |a, b| a && !b)
    }

    /// Trainable and frozen swapped, element by element where there is a mask.
    ///
    /// # Errors
    /// Never: a plan has a complement.
    pub fn complement(&self) -> Result<Self> {
        let masked = |name: &&String| self.mask_of(name).is_some();
        let mut trainable: Vec<String> = self.frozen().to_vec();
        trainable.extend(self.trainable().iter().filter(masked).cloned());
        let frozen = self.trainable().iter().filter(|name| !masked(name)).cloned();
        let mask = self.mask().map(|mask| Mask { complement: !mask.complement, ..mask.clone() });
        Self::build(self.derived("complement"), trainable, frozen.collect(), mask, None)
    }

    fn combine(&self, other: &Self, name: &str, trains: fn(bool, bool) -> bool) -> Result<Self> {
        if self.mask().is_some() || other.mask().is_some() {
            let fault = format!("{name} of plans with a row or element mask is not a plan");
            return Err(Error::usage(fault, "only whole tensors can be combined"));
        }
        let fault = |tensor: &String, which: &str| Error::Plan {
            path: None,
            tensor: Some(tensor.clone()),
            fault: format!("only in the {which} of the two plans"),
            hint: Some("combine plans of one checkpoint".to_owned()),
        };
        let all =
            |plan: &Self| -> Vec<String> { plan.trainable().iter().chain(plan.frozen()).cloned().collect() };
        let mut faults = Faults::default();
        faults
            .extend(all(self).iter().filter(|t| other.is_trainable(t).is_none()).map(|t| fault(t, "first")));
        faults
            .extend(all(other).iter().filter(|t| self.is_trainable(t).is_none()).map(|t| fault(t, "second")));
        faults.into_result()?;
        let on = |t: &String| trains(self.is_trainable(t) == Some(true), other.is_trainable(t) == Some(true));
        let mut names = all(self);
        names.sort_by(|a, b| crate::checkpoint::natural_order(a, b));
        let (trainable, frozen) = names.into_iter().partition(on);
        Self::build(self.derived(name), trainable, frozen, None, None)
    }

    /// The origin of a plan that is computed from this one.
    fn derived(&self, strategy: &str) -> Origin {
        Origin { strategy: Some(strategy.to_owned()), ratio: None, shares: None, ..self.origin.clone() }
    }
}
