//! Which instruction sets the processor has, as proofs, and loops compiled for each of them.

/// A loop that gains from wide vectors. [`Kernel::run`] and all it calls must be `#[inline(always)]`: only then are they
/// compiled for the instruction set of [`Level::run`].
pub(crate) trait Kernel {
    /// What it computes.
    type Output;
    /// Runs the loop.
    fn run(self) -> Self::Output;
}

/// Proof that the processor has AVX2 and FMA; only detection makes one.
#[cfg(target_arch = "x86_64")]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx2(());

/// Proof that the processor has AVX-512 F, BW, DQ and VL, AVX2, FMA and POPCNT; only detection makes one.
#[cfg(target_arch = "x86_64")]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx512(());

/// Proof of [`Avx512`] and AVX-512 IFMA, products of 52-bit integers: Intel Ice Lake, AMD Zen 4 and later.
#[cfg(target_arch = "x86_64")]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx512Ifma(());

/// Proof of [`Avx512`] and AVX512-BF16, products of bfloat16 summed in `f32`: Intel Cooper Lake, AMD Zen 4 and later.
#[cfg(target_arch = "x86_64")]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx512Bf16(());

/// An instruction set that the processor has.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Level {
    /// What every processor of the target has.
    Baseline,
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
}

#[cfg(target_arch = "x86_64")]
impl Avx2 {
    pub(crate) fn detect() -> Option<Self> {
        (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")).then_some(Self(()))
    }
}

#[cfg(target_arch = "x86_64")]
impl Avx512 {
    pub(crate) fn detect() -> Option<Self> {
        let has = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("popcnt");
        has.then_some(Self(()))
    }

    /// The proof of AVX-512 IFMA, where the processor has that too.
    pub(crate) fn ifma(self) -> Option<Avx512Ifma> {
        is_x86_feature_detected!("avx512ifma").then_some(Avx512Ifma(()))
    }

    /// The proof of AVX512-BF16, where the processor has that too.
    pub(crate) fn bf16(self) -> Option<Avx512Bf16> {
        is_x86_feature_detected!("avx512bf16").then_some(Avx512Bf16(()))
    }
}

impl Level {
    /// The widest vectors of this processor.
    pub(crate) fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if let Some(avx512) = Avx512::detect() {
                return Self::Avx512(avx512);
            }
            if let Some(avx2) = Avx2::detect() {
                return Self::Avx2(avx2);
            }
        }
        Self::Baseline
    }

    /// Runs `kernel` compiled for this instruction set.
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            Self::Baseline => kernel.run(),
            // SAFETY: the proof holds the features that `avx2` is compiled for.
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => unsafe { avx2(kernel) },
            // SAFETY: the proof holds the features that `avx512` is compiled for.
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_) => unsafe { avx512(kernel) },
        }
    }
}

/// Runs `kernel` compiled for the widest vectors of this processor.
pub(crate) fn dispatch<K: Kernel>(kernel: K) -> K::Output {
    Level::detect().run(kernel)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
fn avx512<K: Kernel>(kernel: K) -> K::Output {
    kernel.run()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2<K: Kernel>(kernel: K) -> K::Output {
    kernel.run()
}

#[cfg(test)]
impl Level {
    /// Every level that this processor has, the baseline first. Levels it lacks are named on stderr, as tests over this
    /// list have not run them.
    pub(crate) fn available() -> Vec<Self> {
        let mut levels = vec![Self::Baseline];
        #[cfg(target_arch = "x86_64")]
        {
            match Avx2::detect() {
                Some(avx2) => levels.push(Self::Avx2(avx2)),
                None => eprintln!("not run: no AVX2"),
            }
            match Avx512::detect() {
                Some(avx512) => levels.push(Self::Avx512(avx512)),
                None => eprintln!("not run: no AVX-512"),
            }
        }
        levels
    }
}
