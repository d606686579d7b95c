//! The tensors of a vision-language model outside its text part.

use super::Lab;
use crate::common::{read_tensors, run};

#[test]
fn towers_are_named_and_carried_as_they_are() {
    for (family, module) in
        [("gemma3-vision", "model.vision_tower"), ("llava", "vision_tower"), ("qwen2-vl-flat", "visual")]
    {
        let lab = Lab::new();
        // Without --quiet.
        let args = lab.args(family, "run", &["--ratio", "1"]);
        let output = run(&args[1..].iter().map(String::as_str).collect::<Vec<_>>());
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{family}: {said}");
        assert!(said.contains("the text part is trained; ") && said.contains(module), "{family}: {said}");
        let (before, after) = (read_tensors(&lab.path(family)), read_tensors(&lab.path("run")));
        assert!(before.keys().eq(after.keys()), "{family}");
        let tower =
            |name: &str| name.contains("vision") || name.contains("visual") || name.contains("projector");
        for (name, bytes) in &before {
            assert!(tower(name) == (bytes == &after[name]), "{family}: {name}");
        }
    }
}
