//! One tiny test per rule of the header, and agreement with the reference crate.

use super::*;
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
