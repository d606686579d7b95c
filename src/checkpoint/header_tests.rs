//! One tiny test per rule of the header, and agreement with the reference crate.

use super::*;
use crate::checkpoint::Dtype;
use proptest::prelude::*;

fn file(json: &str, data: usize) -> Vec<u8> {
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(json.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

fn parse(bytes: &[u8]) -> Result<Header> {
    let path = Path::new("x.safetensors");
    let len = Header::json_len(path, bytes, bytes.len() as u64)?;
    Header::parse(path, &bytes[8..8 + len as usize], bytes.len() as u64)
}

fn fault(json: &str, data: usize) -> String {
    parse(&file(json, data)).map_or_else(|e| e.to_string(), |_| "accepted".into())
}

#[test]
fn tensors_come_in_the_order_of_their_data() {
    let json = r#"  {"b": {"dtype":"U8","shape":[2],"data_offsets":[1,3]}, "__metadata__": {"format":"pt"},
        "a": {"dtype":"U8","shape":[],"data_offsets":[0,1], "extra": [1]}, "z": {"dtype":"F32","shape":[0,7],"data_offsets":[3,3]}}  "#;
    let header = parse(&file(json, 3)).unwrap();
    let names: Vec<_> = header.tensors().iter().map(|t| t.name.as_str()).collect();
    assert_eq!(names, ["a", "b", "z"]);
    assert_eq!(header.metadata(), [("format".to_owned(), "pt".to_owned())]);
    let start = 8 + json.len() as u64;
    assert_eq!(header.find("b").map(|t| t.bytes.clone()), Some(start + 1..start + 3));
    assert_eq!(header.find("a").map(TensorInfo::elements), Some(1));
    assert_eq!(header.find("z").map(TensorInfo::elements), Some(0));
    assert_eq!(header.find("y"), None);
}

#[test]
fn an_unknown_type_is_sized_by_its_offsets() {
    assert_eq!(fault(r#"{"a": {"dtype":"U3","shape":[7],"data_offsets":[0,3]}}"#, 3), "accepted");
}

#[test]
fn every_fault_has_its_message() {
    let one = |fields: &str| format!(r#"{{"w": {{{fields}}}}}"#);
    let cases = [
        (one(r#""dtype":"U8","shape":[2],"data_offsets":[0,1]"#), 1, "needs 2 bytes"),
        (one(r#""dtype":"U8","shape":[2],"data_offsets":[3,1]"#), 2, "reversed"),
        (one(r#""dtype":"U8","shape":[2],"data_offsets":[1,3]"#), 3, "hole"),
        (one(r#""dtype":"U8","shape":[2],"data_offsets":[0,2]"#), 1, "past the end"),
        (one(r#""dtype":"U8","shape":[2],"data_offsets":[0,2]"#), 3, "trailing"),
        (
            one(r#""dtype":"U0","shape":[9],"data_offsets":[0,1]"#),
            1,
            "shape [9] has more elements than its 1 bytes",
        ),
        (one(r#""dtype":"F4","shape":[3],"data_offsets":[0,1]"#), 1, "whole number of bytes"),
        (one(r#""dtype":"U8","shape":[18446744073709551615,2],"data_offsets":[0,1]"#), 1, "overflows"),
        (one(r#""dtype":"F64","shape":[18446744073709551615],"data_offsets":[0,1]"#), 1, "overflows"),
        (one(r#""dtype":"U8","shape":[-1],"data_offsets":[0,1]"#), 1, "expected u64"),
        (one(r#""dtype":"U8","shape":[1],"data_offsets":[0,1.0]"#), 1, "expected u64"),
        (one(r#""dtype":"U8","shape":[1],"data_offsets":["0","1"]"#), 1, "expected u64"),
        (
            one(r#""dtype":"U8","shape":[1],"data_offsets":[0,1,2]"#),
            1,
            "too many numbers: expected at most 2",
        ),
        (one(r#""dtype":"U8","shape":[1],"data_offsets":[0]"#), 1, "expected two data offsets"),
        (one(r#""dtype":"U8","shape":[1]"#), 1, "missing field `data_offsets`"),
        (one(r#""dtype":8,"shape":[1],"data_offsets":[0,1]"#), 1, "expected a string"),
        (one(r#""dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]"#), 1, "duplicate field"),
        (r#"{"":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#.into(), 0, "empty tensor name"),
        (r#"{"__metadata__":{},"__metadata__":{}}"#.into(), 0, "duplicate `__metadata__`"),
        (r#"{"__metadata__":{"a":"1","a":"2"}}"#.into(), 0, "duplicate metadata key"),
        (r#"{"__metadata__":{"a":1}}"#.into(), 0, "expected a string"),
        (r#"{"__metadata__":[]}"#.into(), 0, "expected metadata"),
        ("[]".into(), 0, "expected an object of tensors"),
        ("   ".into(), 0, "EOF"),
        ("{} x".into(), 0, "trailing characters"),
        ("\u{feff}{}".into(), 0, "not valid"),
        (format!("{}1{}", r#"{"a":"#.repeat(300), "}".repeat(300)), 0, "nested too deeply"),
    ];
    for (json, data, expected) in cases {
        let message = fault(&json, data);
        assert!(message.contains(expected), "{json}: {message}");
        assert!(message.starts_with("x.safetensors: "), "{message}");
    }
}

/// Pieces that mutations put into a header: what JSON parsers and readers of the format have disagreed on.
const PIECES: [&str; 48] = [
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "\"",
    "\\",
    "0",
    "1",
    "-1",
    "-0",
    "01",
    "1.0",
    "1e2",
    "1e999",
    "-",
    "+",
    "null",
    "true",
    "\"\"",
    "\"a\"",
    "\"\\ud800\"",
    "\"\\ud800\\udc00\"",
    "\"\\udc00\"",
    "\\u0000",
    "\\ud83d",
    "\u{feff}",
    "\u{0}",
    "\u{1f}",
    "\t",
    "\r\n",
    " ",
    "\"x\":1,",
    "\"x\":{\"y\":[]},",
    "\"x\":\"\\ud800\",",
    "\"x\":1e999,",
    "\"dtype\":\"F32\",",
    "\"shape\":[],",
    "\"__metadata__\":null,",
    "\"__metadata__\":{},",
    "\"__metadata__\":{\"k\":null},",
    "\"U8\"",
    "\"F4\"",
    "[[]]",
    "{\"a\":0}",
    "18446744073709551616",
    "9007199254740993",
];

/// Where the reference crate accepts and this one does not, with reason: names given twice, which the format forbids;
/// an empty name; an array or a tag in place of the object of a tensor or the name of its type, which the crate's parser
/// takes and the format does not know; ranks beyond PyTorch's.
const STRICTER: [&str; 6] = [
    "duplicate",
    "empty tensor name",
    "expected an object with `dtype`",
    "expected a string",
    "too many numbers: expected at most 64",
    "expected a list of numbers",
];

/// 40,000 mutated headers: what this crate accepts, the reference crate accepts, but for types that it does not know;
/// what only the reference crate accepts is refused for a reason of the list above.
#[test]
fn mutated_headers_are_read_as_the_reference_crate_reads_them() {
    let nested = |n: usize| {
        format!(
            r#"{{"a":{{"x":{}{},"dtype":"U8","shape":[],"data_offsets":[0,1]}}}}"#,
            "[".repeat(n),
            "]".repeat(n)
        )
    };
    let seeds = [
        r#"{"__metadata__":{"format":"pt","k":"v"},"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"F32","shape":[1,1],"data_offsets":[2,6]}}"#.to_owned(),
        r#"{"b":{"dtype":"U8","shape":[],"data_offsets":[1,2],"x":"y"},"a":{"dtype":"BF16","shape":[0,3],"data_offsets":[0,0]},"c":{"dtype":"I8","shape":[1],"data_offsets":[0,1]}}"#.to_owned(),
        nested(125),
        nested(126),
        "{}".to_owned(),
    ];
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut draw = |n: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as usize % n
    };
    let mut accepted = 0;
    for i in 0..40_000 {
        let mut json = seeds[i % seeds.len()].clone().into_bytes();
        for _ in 0..=draw(3) {
            let at = draw(json.len() + 1);
            let end = (at + draw(4)).min(json.len());
            let piece = match draw(6) {
                0 => String::new(),
                1 => String::from_utf8_lossy(&json[at..end]).repeat(2),
                _ => PIECES[draw(PIECES.len())].to_owned(),
            };
            let end = if draw(2) == 0 { at } else { end };
            json.splice(at..end, piece.into_bytes());
        }
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(&json);
        bytes.resize(bytes.len() + [6, 2, 1, 1, 0][i % seeds.len()], 0);
        let shown = String::from_utf8_lossy(&json);
        match (parse(&bytes), safetensors::SafeTensors::deserialize(&bytes)) {
            (Ok(ours), Err(theirs)) => {
                let known = ours.tensors().iter().all(|t| matches!(t.dtype, Dtype::Known(_)));
                assert!(!known, "accepted, but the reference crate says {theirs}: {shown}");
            }
            (Err(ours), Ok(_)) => {
                let reason = ours.to_string();
                assert!(STRICTER.iter().any(|why| reason.contains(why)), "{reason}: {shown}");
            }
            (Ok(_), Ok(_)) => accepted += 1,
            (Err(_), Err(_)) => {}
        }
    }
    assert!(accepted > 1000, "mutations leave some headers valid, got {accepted}");
}

#[test]
fn metadata_may_be_null() {
    let json = r#"{"__metadata__": null, "a": {"dtype":"U8","shape":[],"data_offsets":[0,1]}}"#;
    let header = parse(&file(json, 1)).unwrap();
    assert!(header.metadata().is_empty() && header.find("a").is_some());
    assert!(safetensors::SafeTensors::deserialize(&file(json, 1)).is_ok());
}

#[test]
fn a_name_given_twice_is_refused_even_with_the_same_bytes() {
    for (shape, end) in [(1, 1), (0, 0)] {
        let entry = format!(r#""a":{{"dtype":"U8","shape":[{shape}],"data_offsets":[0,{end}]}}"#);
        let message = fault(&format!("{{{entry},{entry}}}"), end);
        assert_eq!(message, "x.safetensors: tensor `a`: duplicate name");
    }
}

#[test]
fn lengths_are_checked_before_anything_is_read() {
    let length = |n: u64, file_len: u64| Header::json_len(Path::new("x"), &n.to_le_bytes(), file_len).is_ok();
    assert!(length(2, 10) && !length(3, 10) && !length(u64::MAX, 10));
    assert!(length(100_000_000, 1 << 40) && !length(100_000_001, 1 << 40));
    assert!(Header::json_len(Path::new("x"), &[0; 7], 7).is_err());
}

proptest! {
    /// Whatever we accept, the reference crate accepts too and sees the same tensors, and the other way
    /// round: checked on mutated headers. Names given twice and unknown types are the two known
    /// differences, and the mutations below make neither.
    #[test]
    fn agrees_with_the_reference_crate(
        sizes in prop::collection::vec(0u64..5, 1..5), swap in any::<bool>(), slack in 0usize..3, nudge in -1i64..2, space in 0usize..3,
    ) {
        let mut at = 0;
        let mut entries = Vec::new();
        for (i, size) in sizes.iter().enumerate() {
            let end = (at + size).saturating_add_signed(if i == 1 { nudge } else { 0 });
            entries.push(format!(r#""t{i}":{{"dtype":"U8","shape":[{size}],"data_offsets":[{at},{end}]}}"#));
            at = end;
        }
        if swap { entries.reverse(); }
        let bytes = file(&format!("{}{{{}}}", " ".repeat(space), entries.join(",")), at as usize + slack);
        let ours = parse(&bytes);
        let theirs = safetensors::SafeTensors::deserialize(&bytes);
        prop_assert_eq!(ours.is_ok(), theirs.is_ok(), "{:?} {:?}", ours.err(), theirs.err());
        if let (Ok(ours), Ok(theirs)) = (ours, theirs) {
            for tensor in ours.tensors() {
                let data = theirs.tensor(&tensor.name).unwrap();
                prop_assert_eq!(data.data().len() as u64, tensor.len());
                prop_assert_eq!(data.data().as_ptr() as usize - bytes.as_ptr() as usize, tensor.bytes.start as usize);
            }
        }
    }

    /// No bytes make the parser panic.
    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), json in "[\\[\\]{}:,\"a-z0-9_ .-]{0,120}") {
        let _ = parse(&bytes);
        let _ = parse(&file(&json, 3));
    }
}
