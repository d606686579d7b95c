//! Bytes on disk: safetensors headers, memory-mapped shards, the index that joins them, the staged
//! atomic writer and digests. Knows nothing of model architectures.
//!
//! Everything read here is hostile until checked. A [`Header`], an [`Index`] and a [`Checkpoint`]
//! cannot be built invalid, so no later code checks them again.

mod config;
mod convert;
mod digest;
mod dtype;
mod header;
mod index;
mod locate;
mod natural;
mod nesting;
mod process;
mod shard;
mod sharded;
mod sidecar;
mod small_file;
mod staged_file;
mod staging;
mod writer;

pub use config::Config;
pub use convert::{Cast, decode_f32, decode_f64, encode_f32};
pub use digest::{
    Contents, FileDigest, Sha256Hex, TensorDigest, contents, contents_digest, header_digest, tensor_contents,
    tensor_digests,
};
pub use dtype::{Dtype, Known};
pub use header::{Header, TensorInfo};
pub use index::{Index, unsafe_shard_name};
pub use natural::natural_order;
pub use process::{limit_memory, processor_time};
pub use shard::{Access, Shard};
pub use sharded::{Checkpoint, Kind, Tensor};
pub use sidecar::{Sidecars, sidecars, unsafe_sidecar};
pub use small_file::{read_json, read_small};
pub use staged_file::StagedFile;
pub use staging::Staging;
pub use writer::{Link, Target, link_whole};
