//! Another base, a damaged patch and a hostile one are refused, and nothing is written.

use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::common::{counted, files, fixture, write_checkpoint};
use super::{apply, create, odd_tensors, refused};

#[test]
fn another_base_is_refused_and_nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let (base, tuned, out) = (fixture("base"), fixture("tuned"), at("out"));
    create(&base, &tuned, &at("p"), &[]);
    let message = refused(&tuned, &at("p"), &out);
    assert!(
        message.contains("tensor `model.embed_tokens.weight`") && message.contains("is not the base"),
        "{message}"
    );
    assert!(
        message.contains("SHA-256") && message.contains("expected") && message.contains("hint: "),
        "{message}"
    );
    // One byte of one tensor, and one of a sidecar that the patch does not carry.
    for (file, from_end, what) in
        [("model-00002-of-00003.safetensors", 1, "tensor `"), ("tokenizer.json", 3, "`tokenizer.json`")]
    {
        std::fs::create_dir_all(at("other")).unwrap();
        for (name, mut bytes) in files(&base) {
            if name == Path::new(file) {
                let last = bytes.len() - from_end;
                bytes[last] ^= 1;
            }
            std::fs::write(at("other").join(name), bytes).unwrap();
        }
        let message = refused(&at("other"), &at("p"), &out);
        assert!(message.contains(what) && !message.contains("more)"), "{message}");
    }
    let tensors = [counted("model.embed_tokens.weight", &[1], 0)];
    write_checkpoint(&at("small"), &tensors, 1, "{}");
    let message = refused(&at("small"), &at("p"), &out);
    assert!(message.contains("bytes, expected") && message.contains("more)"), "{message}");
}

#[test]
fn a_truncated_or_flipped_patch_is_refused_and_nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    write_checkpoint(&at("base"), &odd_tensors(3), 2, "{}");
    write_checkpoint(&at("tuned"), &odd_tensors(5), 2, r#"{"y": 2}"#);
    create(&at("base"), &at("tuned"), &at("p"), &[]);
    let good = std::fs::read(at("p")).unwrap();
    let check = |bytes: &[u8]| {
        std::fs::write(at("bad"), bytes).unwrap();
        refused(&at("base"), &at("bad"), &at("out"))
    };
    let step = good.len() / 60;
    let cuts = (0..=104).step_by(8).chain((0..good.len()).step_by(step)).chain([good.len() - 1]);
    for cut in cuts {
        check(&good[..cut]);
    }
    check(&[&good[..], &[0]].concat());
    let all_head = (0..104 * 8).step_by(11);
    let everywhere = (0..150).map(|i| i * good.len() * 8 / 150 + i % 8);
    for bit in all_head.chain(everywhere).chain([good.len() * 8 - 1]) {
        let mut bytes = good.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let message = check(&bytes);
        assert!(message.contains("damaged patch") || message.contains("not a patch"), "bit {bit}: {message}");
    }
    for path in [at("base/model-00001-of-00002.safetensors"), at("base")] {
        refused(&at("base"), &path, &at("out"));
    }
}

/// Takes a patch apart, changes its table of contents, and puts it together with right checksums.
fn rewrite(good: &[u8], change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let number = |at: usize| u64::from_le_bytes(good[at..at + 8].try_into().unwrap()) as usize;
    let (toc_at, stored, raw) = (number(16), number(24), number(32));
    let json = zstd::bulk::decompress(&good[toc_at..toc_at + stored], raw).unwrap();
    let mut toc = serde_json::from_slice(&json).unwrap();
    change(&mut toc);
    let json = serde_json::to_vec(&toc).unwrap();
    with_toc(&good[..toc_at], &zstd::bulk::compress(&json, 1).unwrap(), json.len() as u64)
}

fn with_toc(front: &[u8], stored: &[u8], raw: u64) -> Vec<u8> {
    let mut bytes = front.to_vec();
    bytes[24..32].copy_from_slice(&(stored.len() as u64).to_le_bytes());
    bytes[32..40].copy_from_slice(&raw.to_le_bytes());
    bytes[40..72].copy_from_slice(&Sha256::digest(stored));
    let sum = Sha256::digest(&bytes[..72]);
    bytes[72..104].copy_from_slice(&sum);
    bytes.extend_from_slice(stored);
    bytes
}

#[test]
fn a_hostile_table_of_contents_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    write_checkpoint(&at("base"), &odd_tensors(3), 1, "{}");
    write_checkpoint(&at("tuned"), &odd_tensors(5), 1, r#"{"y": 2}"#);
    create(&at("base"), &at("tuned"), &at("p"), &[]);
    let good = std::fs::read(at("p")).unwrap();
    std::fs::write(at("bad"), rewrite(&good, |_| {})).unwrap();
    apply(&at("base"), &at("bad"), &at("fine"), &[]);
    let set = |pointer: &'static str, value: Value| {
        move |toc: &mut Value| *toc.pointer_mut(pointer).unwrap_or_else(|| panic!("{pointer}")) = value
    };
    type Change = Box<dyn FnOnce(&mut Value)>;
    let mut cases: Vec<(Change, &str)> = Vec::new();
    for name in ["../x.safetensors", "/tmp/x.safetensors", "a/x.safetensors", "..", "x.bin", ".x.safetensors"]
    {
        cases.push((Box::new(set("/files/0/name", json!(name))), "unsafe file name"));
    }
    for name in ["../config.json", "/config.json", "x/y.json", "a\\b.json", "run.sh", "c.safetensors", ""] {
        cases.push((Box::new(set("/sidecars/0/path", json!(name))), "unsafe file name"));
    }
    let first = "/files/0/tensors/0/changed";
    cases.push((Box::new(set("/files/0/bytes", json!(u64::MAX))), "trailing bytes"));
    cases.push((Box::new(set("/files/0/bytes", json!(7))), "header length exceeds the file"));
    cases.push((Box::new(set("/files/0/header", json!("{}"))), "trailing bytes"));
    cases.push((Box::new(set("/sidecars/0/bytes", json!(u64::MAX))), "chunks, expected"));
    cases.push((
        Box::new(set("/files/0/tensors/0/changed/chunks/0/0", json!(u32::MAX))),
        "is 4294967295 bytes for",
    ));
    cases.push((Box::new(set("/files/0/tensors/0/changed/chunks/0/0", json!(1))), "chunks end at"));
    cases.push((Box::new(set("/files/0/tensors/0/changed/chunks/0/1", json!("00"))), "64 lower-case"));
    cases.push((Box::new(set("/files/0/tensors/0/changed/chunks", json!([]))), "chunks, expected 1"));
    cases.push((Box::new(set(first, json!({"base": "x", "chunks": [], "more": 1}))), "table of contents"));
    cases.push((
        Box::new(set("/files/0/tensors/0", json!({"same": {"base": "0".repeat(64)}}))),
        "chunks end at",
    ));
    cases.push((Box::new(set("/files/0/sha256", json!("0".repeat(64)))), "came out with SHA-256"));
    cases.push((Box::new(set("/files/0/tensors", json!([]))), "the patch makes 0 tensors"));
    cases.push((Box::new(set("/files", json!([]))), "makes no shard"));
    cases.push((Box::new(set("/base", json!("0"))), "`base`"));
    cases.push((
        Box::new(|toc| {
            let file = toc["files"][0].clone();
            toc["files"].as_array_mut().unwrap().push(file);
        }),
        "it stands twice",
    ));
    cases.push((
        Box::new(|toc| {
            let mut file = toc["files"][0].clone();
            file["name"] = json!("y.safetensors");
            toc["files"].as_array_mut().unwrap().push(file);
        }),
        "two tensors are named",
    ));
    for (change, expected) in cases {
        std::fs::write(at("bad"), rewrite(&good, change)).unwrap();
        let message = refused(&at("base"), &at("bad"), &at("out"));
        assert!(message.contains(expected), "expected {expected}: {message}");
    }
    // Tables that do not decompress, to other lengths, or to no JSON.
    let front = &good[..u64::from_le_bytes(good[16..24].try_into().unwrap()) as usize];
    let zeros = zstd::bulk::compress(&vec![b' '; 1 << 20], 1).unwrap();
    for (stored, raw) in
        [(&b"junk"[..], 10), (&zeros, 1 << 19), (&zeros, 1 << 21), (&zeros, 1 << 20), (&zeros, 1 << 62)]
    {
        std::fs::write(at("bad"), with_toc(front, stored, raw)).unwrap();
        refused(&at("base"), &at("bad"), &at("out"));
    }
}

#[test]
fn a_chunk_with_right_checksum_and_wrong_content_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    write_checkpoint(&at("base"), &[counted("w", &[1000], 1)], 1, "{}");
    write_checkpoint(&at("tuned"), &[counted("w", &[1000], 2)], 1, "{}");
    create(&at("base"), &at("tuned"), &at("p"), &[]);
    let good = std::fs::read(at("p")).unwrap();
    // A bomb, too short a chunk, and one of the right length.
    for (len, expected) in [(1 << 24, "cannot be decompressed"), (10, "expected 2000"), (2000, "came out")] {
        let chunk = zstd::bulk::compress(&vec![7; len], 1).unwrap();
        let sum = Sha256::digest(&chunk).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let changed = rewrite(&good, |toc| {
            toc["files"][0]["tensors"][0]["changed"]["chunks"] = json!([[chunk.len(), sum]]);
        });
        let toc = &changed[u64::from_le_bytes(good[16..24].try_into().unwrap()) as usize..];
        let raw = u64::from_le_bytes(changed[32..40].try_into().unwrap());
        let mut front = [&good[..104], &chunk].concat();
        let end = front.len() as u64;
        front[16..24].copy_from_slice(&end.to_le_bytes());
        std::fs::write(at("bad"), with_toc(&front, toc, raw)).unwrap();
        let message = refused(&at("base"), &at("bad"), &at("out"));
        assert!(message.contains(expected), "{message}");
    }
}
