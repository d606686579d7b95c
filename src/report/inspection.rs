//! The content of a checkpoint, read from headers alone.

use std::collections::BTreeMap;

use serde::Serialize;

use super::json::json_text;
use super::number::{bytes, grouped, percent};
use super::selection::MOST_PROJECTIONS;
use super::table::{table, text};
use crate::checkpoint::{Checkpoint, header_digest};
use crate::error::Escaped;
use crate::plan::{Category, Inventory, TensorName};

/// The content of a checkpoint.
#[derive(Debug, Serialize)]
pub struct Inspection {
    path: String,
    architecture: Option<String>,
    tied_head: bool,
    /// How weights are quantized, where some are.
    #[serde(skip_serializing_if = "Option::is_none")]
    quantization: Option<String>,
    /// Number of tensors.
    tensors: usize,
    /// Elements of all parameters; a tied head counts once.
    parameters: u64,
    bytes: u64,
    layers: usize,
    header_sha256: String,
    shards: Vec<ShardRow>,
    dtypes: BTreeMap<String, Count>,
    categories: BTreeMap<Category, Count>,
    projections: Vec<ProjectionRow>,
    metadata: BTreeMap<String, String>,
    unindexed_files: Vec<String>,
    /// Tensors whose names do not tell their category.
    other: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tensor_list: Option<Vec<TensorRow>>,
}

#[derive(Debug, Serialize)]
struct ShardRow {
    name: String,
    bytes: u64,
    tensors: usize,
}

#[derive(Debug, Default, Clone, Copy, Serialize)]
struct Count {
    tensors: u64,
    parameters: u64,
    bytes: u64,
}

#[derive(Debug, Serialize)]
struct ProjectionRow {
    category: Category,
    projection: String,
    shape: Vec<u64>,
    dtype: String,
    count: u64,
}

#[derive(Debug, Serialize)]
struct TensorRow {
    name: String,
    dtype: String,
    shape: Vec<u64>,
    bytes: u64,
    shard: String,
    offset: u64,
    layer: Option<u32>,
    category: Category,
    projection: String,
}

impl Inspection {
    /// Inspects `checkpoint`; with `list`, every tensor gets a row.
    pub fn new(checkpoint: &Checkpoint, inventory: &Inventory, list: bool) -> Self {
        let mut dtypes: BTreeMap<String, Count> = BTreeMap::new();
        let mut categories: BTreeMap<Category, Count> = BTreeMap::new();
        let mut projections: BTreeMap<(Category, String, Vec<u64>, String), u64> = BTreeMap::new();
        let mut layers = std::collections::BTreeSet::new();
        for tensor in checkpoint.tensors() {
            let info = tensor.info;
            dtypes.entry(info.dtype.to_string()).or_default().add(info.elements(), info.len());
            let parsed = TensorName::of(&info.name);
            categories.entry(parsed.category).or_default().add(info.elements(), info.len());
            let row =
                (parsed.category, parsed.projection.clone(), info.shape.clone(), info.dtype.to_string());
            *projections.entry(row).or_default() += 1;
            layers.extend(parsed.layer.map(|layer| (parsed.stack.clone(), layer)));
        }
        let projections = projections.into_iter().map(|((category, projection, shape, dtype), count)| {
            ProjectionRow { category, projection, shape, dtype, count }
        });
        let metadata = checkpoint.shards().iter().flat_map(|shard| shard.header().metadata().iter().cloned());
        let shards = checkpoint.shards().iter().map(|shard| ShardRow {
            name: shard.file_name(),
            bytes: shard.file_len(),
            tensors: shard.header().tensors().len(),
        });
        Self {
            path: checkpoint.path().to_string_lossy().into_owned(),
            architecture: inventory.architecture().map(str::to_owned),
            tied_head: checkpoint.tied(),
            quantization: checkpoint.quantization().map(ToString::to_string),
            tensors: checkpoint.len(),
            parameters: inventory.parameters(),
            bytes: checkpoint.tensor_bytes(),
            layers: layers.len(),
            header_sha256: header_digest(checkpoint).to_string(),
            shards: shards.collect(),
            dtypes,
            categories,
            projections: projections.collect(),
            metadata: metadata.collect(),
            unindexed_files: checkpoint.unindexed().to_vec(),
            other: inventory.other_names().into_iter().map(str::to_owned).collect(),
            tensor_list: list.then(|| tensor_rows(checkpoint)),
        }
    }

    /// As JSON, indented.
    pub fn to_json(&self) -> String {
        let value = serde_json::to_value(self).unwrap_or_default();
        json_text(&value)
    }

    /// As text for a person.
    pub fn to_text(&self) -> String {
        let mut out = format!(
            "{}\n{} parameters in {} tensors, {} layers, {}{}\n\n",
            Escaped(self.architecture.as_deref().unwrap_or("unknown architecture")),
            grouped(self.parameters),
            grouped(self.tensors as u64),
            self.layers,
            bytes(self.bytes),
            if self.tied_head { ", tied head" } else { "" },
        );
        if let Some(quantization) = &self.quantization {
            out += &format!("quantized: {quantization}\n\n");
        }
        out += &self.category_table();
        out += "\n";
        out += &self.projection_table();
        out += "\n";
        let mut shards = table(&["shard", ">tensors", ">size"]);
        for shard in &self.shards {
            shards.add_row([
                Escaped(&shard.name).to_string(),
                grouped(shard.tensors as u64),
                bytes(shard.bytes),
            ]);
        }
        out += &text(&shards);
        for (key, value) in &self.metadata {
            out += &format!("\nmetadata {} = {}", Escaped(key), Escaped(value));
        }
        for file in &self.unindexed_files {
            out += &format!("\nnot part of the checkpoint: {}", Escaped(file));
        }
        for name in self.other.iter().take(20) {
            out += &format!("\nplace not known from the name: {}", Escaped(name));
        }
        if self.other.len() > 20 {
            out += &format!("\n… and {} more; see --json", self.other.len() - 20);
        }
        if let Some(rows) = &self.tensor_list {
            out += &format!("\n{}", tensor_table(rows));
        }
        out.trim_end().to_owned() + "\n"
    }

    fn category_table(&self) -> String {
        let elements: u64 = self.categories.values().map(|count| count.parameters).sum();
        let mut rows = table(&["category", ">tensors", ">parameters", ">share", ">size"]);
        for (category, count) in &self.categories {
            rows.add_row([
                category.to_string(),
                grouped(count.tensors),
                grouped(count.parameters),
                percent(count.parameters, elements),
                bytes(count.bytes),
            ]);
        }
        text(&rows)
    }

    fn projection_table(&self) -> String {
        let mut rows = table(&["category", "projection", "shape", "dtype", ">count"]);
        for row in self.projections.iter().take(MOST_PROJECTIONS) {
            rows.add_row([
                row.category.to_string(),
                Escaped(&row.projection).to_string(),
                format!("{:?}", row.shape),
                row.dtype.clone(),
                grouped(row.count),
            ]);
        }
        let more = self.projections.len().saturating_sub(MOST_PROJECTIONS);
        text(&rows) + &if more > 0 { format!("… and {more} more\n") } else { String::new() }
    }
}

impl Count {
    fn add(&mut self, parameters: u64, bytes: u64) {
        self.tensors += 1;
        self.parameters += parameters;
        self.bytes += bytes;
    }
}

fn tensor_rows(checkpoint: &Checkpoint) -> Vec<TensorRow> {
    let row = |tensor: crate::checkpoint::Tensor<'_>| {
        let info = tensor.info;
        let parsed = TensorName::of(&info.name);
        TensorRow {
            name: info.name.clone(),
            dtype: info.dtype.to_string(),
            shape: info.shape.clone(),
            bytes: info.len(),
            shard: checkpoint.shards()[tensor.shard].file_name(),
            offset: info.bytes.start,
            layer: parsed.layer,
            category: parsed.category,
            projection: parsed.projection,
        }
    };
    checkpoint.tensors().map(row).collect()
}

fn tensor_table(rows: &[TensorRow]) -> String {
    let mut out = table(&["tensor", "dtype", "shape", ">size", "category", "shard"]);
    for row in rows {
        out.add_row([
            Escaped(&row.name).to_string(),
            row.dtype.clone(),
            format!("{:?}", row.shape),
            bytes(row.bytes),
            row.category.to_string(),
            Escaped(&row.shard).to_string(),
        ]);
    }
    text(&out)
}
