//! Whether a checkpoint is the base that a patch was made from.

use std::path::PathBuf;

use crate::checkpoint::{Checkpoint, Sha256Hex, Tensor, TensorInfo, tensor_digests};
use crate::error::Escaped;
use crate::patch::reader::Patch;
use crate::patch::sidecar_files::{SidecarFiles, hash_file};
use crate::patch::toc::Action;
use crate::{Error, Result};

/// The tensors and files of a base that a patch refers to.
#[derive(Debug)]
pub(crate) struct Fit<'a> {
    base: &'a Checkpoint,
    /// By shard and tensor of the patch: where the base has its bytes, and their SHA-256.
    pub(crate) tensors: Vec<Vec<Option<(Tensor<'a>, Sha256Hex)>>>,
    /// By sidecar of the patch.
    pub(crate) sidecars: Vec<Option<PathBuf>>,
}

/// One way in which a checkpoint is not the base.
struct Misfit {
    tensor: Option<String>,
    fault: String,
}

impl<'a> Fit<'a> {
    /// Finds in `base` all that `patch` refers to. Reads headers only.
    ///
    /// # Errors
    /// [`Error::Pairing`] naming the first tensor that is missing or has another type or shape.
    pub(crate) fn new(patch: &Patch, base: &'a Checkpoint) -> Result<Self> {
        let mut misfits = Vec::new();
        let mut tensors = Vec::with_capacity(patch.headers().len());
        for (file, header) in patch.toc().files.iter().zip(patch.headers()) {
            let pairs = file.tensors.iter().zip(header.tensors());
            let found = pairs.map(|(action, info)| {
                find(base, action, info).unwrap_or_else(|misfit| {
                    misfits.push(misfit);
                    None
                })
            });
            tensors.push(found.collect());
        }
        let files = SidecarFiles::of(base)?;
        let mut sidecars = Vec::with_capacity(patch.toc().sidecars.len());
        for entry in &patch.toc().sidecars {
            let found = files.carried.get(&entry.path).filter(|_| entry.chunks.is_none());
            if entry.chunks.is_none() && found.is_none() {
                let fault = format!("`{}` is missing beside its weights", Escaped(&entry.path));
                misfits.push(Misfit { tensor: None, fault });
            }
            sidecars.push(found.cloned());
        }
        refuse(base, patch, misfits)?;
        Ok(Self { base, tensors, sidecars })
    }

    /// Hashes all that the patch refers to.
    ///
    /// # Errors
    /// [`Error::Pairing`] naming the first tensor or file that has other bytes.
    pub(crate) fn check_contents(&self, patch: &Patch) -> Result<()> {
        let used: Vec<(Tensor<'_>, Sha256Hex)> = self.tensors.iter().flatten().flatten().copied().collect();
        let tensors: Vec<Tensor<'_>> = used.iter().map(|(tensor, _)| *tensor).collect();
        let found = tensor_digests(self.base, &tensors)?;
        self.base.check_unchanged()?;
        let wrong = used.iter().zip(found).filter(|((_, expected), got)| got != expected);
        let wrong = wrong.map(|((tensor, expected), got)| Misfit {
            tensor: Some(tensor.info.name.clone()),
            fault: format!(
                "its SHA-256 in `{}` is {got}, expected {expected}",
                Escaped(&self.base.shards()[tensor.shard].file_name())
            ),
        });
        let mut misfits: Vec<Misfit> = wrong.collect();
        for (entry, path) in patch.toc().sidecars.iter().zip(&self.sidecars) {
            let Some(path) = path else { continue };
            let (bytes, sha256) = hash_file(path)?;
            if (bytes, sha256) != (entry.bytes, entry.sha256) {
                let (file, expected) = (Escaped(&entry.path), entry.sha256);
                let fault = format!("the SHA-256 of `{file}` is {sha256}, expected {expected}");
                misfits.push(Misfit { tensor: None, fault });
            }
        }
        refuse(self.base, patch, misfits)
    }
}

/// The tensor of the base that an action refers to.
fn find<'a>(
    base: &'a Checkpoint,
    action: &Action,
    info: &TensorInfo,
) -> std::result::Result<Option<(Tensor<'a>, Sha256Hex)>, Misfit> {
    let (name, sha256) = match action {
        Action::Same { base, name } => (name.as_ref().unwrap_or(&info.name), *base),
        Action::Changed { base, .. } => (&info.name, *base),
        Action::Reshaped { .. } | Action::New { .. } => return Ok(None),
    };
    let misfit = |fault: String| Misfit { tensor: Some(name.clone()), fault };
    let Some(found) = base.find(name) else {
        return Err(misfit("it is missing".to_owned()));
    };
    let got = found.info;
    if got.len() != info.len() {
        return Err(misfit(format!("it has {} bytes, expected {}", got.len(), info.len())));
    }
    let changed = matches!(action, Action::Changed { .. });
    if changed && (&got.dtype, &got.shape) != (&info.dtype, &info.shape) {
        let (dtype, shape) = (&got.dtype, &got.shape);
        let expected = format!("expected {} of shape {:?}", info.dtype, info.shape);
        return Err(misfit(format!("it is {dtype} of shape {shape:?}, {expected}")));
    }
    Ok(Some((found, sha256)))
}

fn refuse(base: &Checkpoint, patch: &Patch, misfits: Vec<Misfit>) -> Result<()> {
    let more = misfits.len().saturating_sub(1);
    let Some(Misfit { tensor, fault }) = misfits.into_iter().next() else {
        return Ok(());
    };
    let path = Escaped(base.path());
    let more = if more == 0 { String::new() } else { format!(" (and {more} more)") };
    Err(Error::Pairing {
        tensor,
        fault: format!("{path} is not the base of this patch: {fault}{more}"),
        hint: Some(format!(
            "`hft-surgery verify` of the right base prints the digest {}",
            patch.base_digest()
        )),
    })
}
