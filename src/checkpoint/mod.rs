//! Bytes on disk: safetensors headers, memory-mapped shards, the index that joins them, the staged
//! atomic writer and digests. Knows nothing of model architectures.
//!
//! Everything read here is hostile until checked. A [`Header`], an [`Index`] and a [`Checkpoint`]
//! cannot be built invalid, so no later code checks them again.
//!
//! Parts, lowest first: `process`, `natural_order`, `bounded_list`, `json_bounds`, `foreign_format`, `small_file`,
//! `dtype`, `config`, `convert`, `header_json`, `header`, `header_writer`, `index`, `map`, `scratch_file`, `reading`, `computed_file`, `whole`, `shard`, `locate`,
//! `spelling`, `aliases`, `quantization`, `index_check`, `sharded`, `computed`, `mxfp4`, `dequantize`, `digest`, `sidecar`, `output_guard`,
//! `private_dir`, `staging`, `replacement`, `staged_file`, `writer`.

mod aliases;
mod bounded_list;
mod computed;
mod computed_file;
mod config;
mod convert;
mod dequantize;
mod digest;
mod dtype;
mod foreign_format;
mod header;
mod header_json;
mod header_writer;
mod index;
mod index_check;
mod json_bounds;
mod locate;
mod map;
mod mxfp4;
mod natural_order;
mod output_guard;
mod private_dir;
mod process;
mod quantization;
mod reading;
mod replacement;
mod scratch_file;
mod shard;
mod sharded;
mod sidecar;
mod small_file;
mod spelling;
mod staged_file;
mod staging;
mod whole;
mod writer;

pub use bounded_list::{MOST_TENSORS, at_most};
pub(crate) use computed::ReplaceShard;
pub(crate) use computed_file::{ComputedFile, ReadTensor};
pub use config::Config;
pub use convert::{Cast, decode_f32, decode_f64, encode_f32};
pub use digest::{
    Contents, FileDigest, Sha256Hex, TensorDigest, compare_contents, contents, contents_digest,
    header_digest, sample_digest, tensor_contents, tensor_digests,
};
pub use dtype::{Dtype, Known};
pub use header::Header;
pub use header_json::TensorInfo;
pub(crate) use header_writer::HeaderWriter;
pub use index::{Index, unsafe_shard_name};
pub(crate) use json_bounds::tree_bytes;
pub use locate::Kind;
pub use map::{Element, MappedSlice};
pub(crate) use mxfp4::decode as decode_mxfp4;
pub use natural_order::natural_order;
pub use output_guard::CommandInputs;
pub use private_dir::{PrivateDir, remove_unfinished};
pub use process::{ProcessId, available_memory, limit_memory, processor_time, raise_open_files};
pub use quantization::Quantization;
pub use replacement::{Replaced, Replacement};
pub use scratch_file::ScratchFile;
pub use shard::{Access, Shard};
pub use sharded::{Checkpoint, ReadOptions, Tensor};
pub use sidecar::{Sidecars, sidecars, unsafe_sidecar};
pub use small_file::{read_config, read_json, read_named, read_small};
pub use staged_file::{Replace, StagedFile, replace_bytes, replace_file};
pub use staging::{Staging, check_space};
pub use writer::{Link, Target, link_whole};
