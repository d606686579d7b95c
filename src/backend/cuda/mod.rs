//! NVIDIA cards, from Ampere on. All libraries are looked for when the program runs.

mod doctor;
mod libraries;

pub use doctor::diagnose;
