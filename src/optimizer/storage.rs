//! Where the state of an optimizer lies.

use std::ops::{Deref, DerefMut};

use crate::checkpoint::{Element, MappedSlice};

/// Where the states of all tensors lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StatePlace {
    /// In the memory of the device that computes.
    #[default]
    Device,
    /// In a file that is mapped; on the CPU.
    Disk,
    /// In page-locked memory of the host, which the kernels of a GPU read and write themselves.
    Host,
}

/// Numbers on the host, in memory or in a file that is mapped. A copy is in memory.
#[derive(Debug)]
pub enum Storage<T> {
    /// In memory.
    Memory(Vec<T>),
    /// In a file.
    Mapped(MappedSlice<T>),
}

impl<T: Element> Storage<T> {
    /// Sets all numbers, where they lie.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn set(&mut self, values: Self) {
        assert!(self.len() == values.len(), "a part of a state is set as a whole");
        match self {
            Self::Memory(_) => *self = values,
            Self::Mapped(mapped) => {
                mapped.copy_from_slice(&values);
                mapped.release();
            }
        }
    }

    /// See [`MappedSlice::will_need`].
    pub fn will_need(&self) {
        if let Self::Mapped(mapped) = self {
            mapped.will_need();
        }
    }

    /// See [`MappedSlice::release`].
    pub fn release(&self) {
        if let Self::Mapped(mapped) = self {
            mapped.release();
        }
    }
}

impl<T: Element> Deref for Storage<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match self {
            Self::Memory(values) => values,
            Self::Mapped(values) => values,
        }
    }
}

impl<T: Element> DerefMut for Storage<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        match self {
            Self::Memory(values) => values,
            Self::Mapped(values) => values,
        }
    }
}

impl<T> From<Vec<T>> for Storage<T> {
    fn from(values: Vec<T>) -> Self {
        Self::Memory(values)
    }
}

impl<T: Element> Clone for Storage<T> {
    fn clone(&self) -> Self {
        Self::Memory(self.to_vec())
    }
}

impl<T: Element + PartialEq> PartialEq for Storage<T> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}
