//! The content of a patch.

use std::collections::BTreeMap;

use serde::Serialize;

use super::json::json_text;
use super::number::{bytes, grouped, percent};
use super::table::{table, text};
use crate::checkpoint::Sha256Hex;
use crate::error::Escaped;
use crate::patch::{Change, Patch};
use crate::plan::{Category, TensorName};

/// The content of a patch, read from its table of contents alone.
#[derive(Debug, Serialize)]
pub struct PatchInspection {
    base_sha256: Sha256Hex,
    tuned_sha256: Sha256Hex,
    /// Bytes of the patch.
    bytes: u64,
    /// Bytes of the checkpoint it makes.
    tuned_bytes: u64,
    tensors: usize,
    identical: Count,
    changed: Count,
    reshaped: Count,
    new: Count,
    categories: BTreeMap<Category, CategoryCount>,
    files: Vec<FileRow>,
    sidecars: Vec<FileRow>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tensor_list: Option<Vec<TensorRow>>,
}

#[derive(Debug, Default, Clone, Copy, Serialize)]
struct Count {
    tensors: u64,
    bytes: u64,
    stored: u64,
}

#[derive(Debug, Default, Clone, Copy, Serialize)]
struct CategoryCount {
    identical: u64,
    /// The tensors that the patch holds: changed, reshaped or new.
    in_patch: Count,
}

#[derive(Debug, Serialize)]
struct FileRow {
    path: String,
    bytes: u64,
    sha256: Sha256Hex,
    /// Absent where it comes from the base.
    stored: Option<u64>,
}

#[derive(Debug, Serialize)]
struct TensorRow {
    name: String,
    dtype: String,
    shape: Vec<u64>,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    renamed_from: Option<String>,
    bytes: u64,
    stored: u64,
}

impl Count {
    fn add(&mut self, bytes: u64, stored: u64) {
        self.tensors += 1;
        self.bytes += bytes;
        self.stored += stored;
    }
}

impl PatchInspection {
    /// Inspects `patch`; with `list`, every tensor gets a row.
    pub fn new(patch: &Patch, list: bool) -> Self {
        let mut counts = [Count::default(); 4];
        let mut categories: BTreeMap<Category, CategoryCount> = BTreeMap::new();
        let mut rows = Vec::new();
        for tensor in patch.tensors() {
            let info = tensor.info;
            counts[tensor.change as usize].add(info.len(), tensor.stored);
            let category = categories.entry(TensorName::of(&info.name).category).or_default();
            match tensor.change {
                Change::Identical => category.identical += 1,
                _ => category.in_patch.add(info.len(), tensor.stored),
            }
            if list {
                rows.push(TensorRow {
                    name: info.name.clone(),
                    dtype: info.dtype.to_string(),
                    shape: info.shape.clone(),
                    status: status(tensor.change),
                    renamed_from: tensor.renamed_from.map(str::to_owned),
                    bytes: info.len(),
                    stored: tensor.stored,
                });
            }
        }
        let row = |file: crate::patch::PatchFile<'_>| FileRow {
            path: file.path.to_owned(),
            bytes: file.bytes,
            sha256: file.sha256,
            stored: file.stored,
        };
        let [identical, changed, reshaped, new] = counts;
        Self {
            base_sha256: patch.base_digest(),
            tuned_sha256: patch.tuned_digest(),
            bytes: patch.bytes(),
            tuned_bytes: patch.output_bytes(),
            tensors: patch.tensors().count(),
            identical,
            changed,
            reshaped,
            new,
            categories,
            files: patch.shards().map(row).collect(),
            sidecars: patch.sidecars().map(row).collect(),
            tensor_list: list.then_some(rows),
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
            "{} for {}, {} of it\nbase  {}\ntuned {}\n\n",
            bytes(self.bytes),
            bytes(self.tuned_bytes),
            percent(self.bytes, self.tuned_bytes),
            self.base_sha256,
            self.tuned_sha256,
        );
        let mut changes = table(&["tensors", ">count", ">size", ">in patch", ">share"]);
        let counts = [
            ("identical", &self.identical),
            ("changed", &self.changed),
            ("reshaped", &self.reshaped),
            ("new", &self.new),
        ];
        for (name, count) in counts.iter().filter(|(_, count)| count.tensors > 0) {
            changes.add_row([
                (*name).to_owned(),
                grouped(count.tensors),
                bytes(count.bytes),
                bytes(count.stored),
                percent(count.stored, count.bytes),
            ]);
        }
        out += &text(&changes);
        out += "\n";
        let mut categories =
            table(&["category", ">identical", ">in patch", ">size", ">compressed", ">share"]);
        for (category, count) in &self.categories {
            categories.add_row([
                category.to_string(),
                grouped(count.identical),
                grouped(count.in_patch.tensors),
                bytes(count.in_patch.bytes),
                bytes(count.in_patch.stored),
                percent(count.in_patch.stored, count.in_patch.bytes),
            ]);
        }
        out += &text(&categories);
        out += "\n";
        let mut files = table(&["file", ">size", ">in patch"]);
        for file in self.files.iter().chain(&self.sidecars) {
            let stored = file.stored.map_or_else(|| "from base".to_owned(), bytes);
            files.add_row([Escaped(&file.path).to_string(), bytes(file.bytes), stored]);
        }
        out += &text(&files);
        if let Some(rows) = &self.tensor_list {
            out += "\n";
            out += &tensor_table(rows);
        }
        out
    }
}

fn status(change: Change) -> &'static str {
    match change {
        Change::Identical => "identical",
        Change::Changed => "changed",
        Change::Reshaped => "reshaped",
        Change::New => "new",
    }
}

fn tensor_table(rows: &[TensorRow]) -> String {
    let mut out = table(&["tensor", "dtype", "shape", "status", ">size", ">in patch"]);
    for row in rows {
        let from = row.renamed_from.as_ref().map(|name| format!(", was {}", Escaped(name)));
        out.add_row([
            Escaped(&row.name).to_string(),
            row.dtype.clone(),
            format!("{:?}", row.shape),
            format!("{}{}", row.status, from.unwrap_or_default()),
            bytes(row.bytes),
            bytes(row.stored),
        ]);
    }
    text(&out)
}
