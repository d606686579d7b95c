//! The clock of [`Timed`]: a backend that measures how long each operation of another one takes.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::time::Instant;

use super::operation_time::{Operation, OperationKind, OperationTime, Phase};
use super::operations::Backend;

/// A weight with its shape.
#[derive(Debug)]
pub struct TimedWeight<W> {
    pub(super) weight: W,
    pub(super) rows: usize,
    pub(super) cols: usize,
}

impl<W> TimedWeight<W> {
    /// `weight` is `[rows, cols]`.
    pub fn new(weight: W, rows: usize, cols: usize) -> Self {
        Self { weight, rows, cols }
    }
}

/// Measures each operation of a backend. Memory is not planned and passes are not recorded; a device that works behind the
/// host is waited for after each operation.
#[derive(Debug)]
pub struct Timed<'b, B: Backend> {
    pub(super) inner: &'b mut B,
    /// Read back to wait for the device.
    probe: B::Buffer,
    times: RefCell<BTreeMap<Operation, OperationTime>>,
    /// Whether the gradients of the head were computed since the last embedding.
    pub(super) backward: Cell<bool>,
}

impl<'b, B: Backend> Timed<'b, B> {
    /// Measures the operations of `inner`.
    pub fn new(inner: &'b mut B) -> Self {
        let probe = inner.zeros(1);
        Self { inner, probe, times: RefCell::default(), backward: Cell::new(false) }
    }

    /// The backend that is measured.
    pub fn inner(&self) -> &B {
        self.inner
    }

    /// The times since the last call.
    pub fn take_times(&mut self) -> BTreeMap<Operation, OperationTime> {
        self.times.take()
    }

    pub(super) fn count(&self, operation: Operation, since: Instant, flops: f64) {
        // A fault is kept by the backend, which reports it.
        let _ = self.inner.to_host(&self.probe);
        let mut times = self.times.borrow_mut();
        let time = times.entry(operation).or_default();
        time.calls += 1;
        time.time += since.elapsed();
        time.flops += flops;
    }

    /// An operation of the forward pass, which the backward pass may repeat.
    pub(super) fn add_forward(
        &self,
        kind: OperationKind,
        shape: Option<(usize, usize)>,
        since: Instant,
        flops: f64,
    ) {
        let phase = if self.backward.get() { Phase::Recomputation } else { Phase::Forward };
        self.count(Operation { phase, kind, shape }, since, flops);
    }

    /// An element-wise operation, which the backward pass has of its own.
    pub(super) fn add_elementwise(&self, since: Instant) {
        let phase = if self.backward.get() { Phase::ActivationGradients } else { Phase::Forward };
        self.add_as(phase, OperationKind::Elementwise, since);
    }

    pub(super) fn add_as(&self, phase: Phase, kind: OperationKind, since: Instant) {
        self.count(Operation { phase, kind, shape: None }, since, 0.0);
    }
}

/// Floating-point operations of a product over `rows` rows.
pub(super) fn product_flops(rows: usize, out_features: usize, in_features: usize) -> f64 {
    2.0 * rows as f64 * out_features as f64 * in_features as f64
}
