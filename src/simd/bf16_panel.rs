//! Operands of products of bfloat16, in panels.
//!
//! A line is a row of the left operand or a column of the right one. A panel holds 16 lines, and of each of them two
//! neighbours along the inner dimension side by side, as the instructions take them.

/// Lines of a panel.
pub(crate) const LINES: usize = 16;

/// For each line of a panel elements `2 i` and `2 i + 1` of the inner dimension, the first of them in the lower half.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Pairs(pub(super) [u32; LINES]);

impl Pairs {
    pub(crate) const ZERO: Self = Self([0; LINES]);
}

/// Numbers that are rounded to bfloat16, to nearest even, where they are not in it.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Numbers<'a> {
    F32(&'a [f32]),
    /// Little-endian bfloat16.
    Bf16(&'a [[u8; 2]]),
}

/// Lines of some panels. One of the strides is 1.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lines<'a> {
    pub(crate) numbers: Numbers<'a>,
    pub(crate) count: usize,
    /// Elements of a line.
    pub(crate) inner: usize,
    /// How far neighbours along the inner dimension lie apart.
    pub(crate) inner_stride: usize,
    /// How far neighbouring lines lie apart.
    pub(crate) line_stride: usize,
}
