//! Faults of one kind, told together: one sentence, a count and a few examples.

use super::escaped::Escaped;
use super::kinds::Error;

/// Faults that are all told, where there are no more of a kind.
const FEW: usize = 3;

/// Faults whose messages differ in names and numbers only, in the order in which they were found.
#[derive(Debug)]
pub struct Group<'a> {
    faults: Vec<&'a Error>,
}

/// Groups `faults` by kind; groups are in the order of their first faults.
pub fn groups<'a>(faults: impl IntoIterator<Item = &'a Error>) -> Vec<Group<'a>> {
    let mut found: Vec<(String, Group<'a>)> = Vec::new();
    for fault in faults {
        let kind = kind(fault);
        match found.iter_mut().find(|(other, _)| *other == kind) {
            Some((_, group)) => group.faults.push(fault),
            None => found.push((kind, Group { faults: vec![fault] })),
        }
    }
    found.into_iter().map(|(_, group)| group).collect()
}

impl Group<'_> {
    /// The advice that all faults of the group share.
    pub fn hint(&self) -> Option<String> {
        self.faults[0].hint().filter(|hint| !hint.is_empty())
    }

    /// The number of faults.
    #[expect(clippy::len_without_is_empty, reason = "a group has a fault")]
    pub fn len(&self) -> usize {
        self.faults.len()
    }

    /// What all messages say after the subject, up to the first difference between them.
    fn sentence(&self, texts: &[String]) -> String {
        let first = &texts[0];
        if texts.iter().all(|text| text == first) {
            return first.clone();
        }
        let shared = |text: &String| first.bytes().zip(text.bytes()).take_while(|(a, b)| a == b).count();
        let mut end = texts.iter().map(shared).min().unwrap_or(0);
        while !first.is_char_boundary(end) {
            end -= 1;
        }
        first[..end].rfind(": ").map_or_else(String::new, |colon| first[..colon].to_owned())
    }
}

impl Group<'_> {
    /// The message of each of a few faults; of more, one message: a sentence with their number, and examples.
    pub fn messages(&self) -> Vec<String> {
        let n = self.faults.len();
        if n <= FEW {
            return self.faults.iter().map(ToString::to_string).collect();
        }
        let (subjects, texts): (Vec<String>, Vec<String>) =
            self.faults.iter().map(|fault| split(fault)).unzip();
        let sentence = self.sentence(&texts);
        let one_file = !subjects[0].is_empty() && subjects.iter().all(|subject| *subject == subjects[0]);
        let what = match one_file {
            true => format!("{}: {n} faults", subjects[0]),
            false => format!("{n} {}", noun(self.faults[0])),
        };
        if sentence == texts[0] && !subjects[0].is_empty() {
            return vec![format!("{what}: {sentence}: {}, …", subjects[..FEW].join(", "))];
        }
        let mut message = what + if sentence.is_empty() { "" } else { ": " } + &sentence;
        for (subject, text) in subjects.iter().zip(&texts).take(FEW) {
            let rest = text[sentence.len()..].trim_start_matches(": ");
            let subject = if one_file || subject.is_empty() { String::new() } else { format!("{subject}: ") };
            message += &format!("\n    {subject}{rest}");
        }
        vec![message + "\n    …"]
    }
}

/// The file or tensor that a fault is about, and what is said of it.
fn split(fault: &Error) -> (String, String) {
    let tensor = |name: &str| format!("`{}`", Escaped(name));
    match fault {
        Error::Header { tensor: Some(name), path, fault }
        | Error::Index { tensor: Some(name), path, fault } => {
            (format!("{} of {}", tensor(name), Escaped(path)), fault.clone())
        }
        Error::Pairing { tensor: Some(name), fault, .. } | Error::Plan { tensor: Some(name), fault, .. } => {
            (tensor(name), fault.clone())
        }
        Error::Data { path, line: Some(line), fault, .. } => {
            (format!("{}:{line}", Escaped(path)), fault.clone())
        }
        Error::Checkpoint { path, fault, .. }
        | Error::Output { path, fault, .. }
        | Error::Data { path, fault, .. } => (Escaped(path).to_string(), fault.clone()),
        other => (String::new(), other.to_string()),
    }
}

/// The things that faults of this kind are about.
fn noun(fault: &Error) -> &'static str {
    match fault {
        Error::Header { tensor: Some(_), .. }
        | Error::Index { tensor: Some(_), .. }
        | Error::Pairing { tensor: Some(_), .. }
        | Error::Plan { tensor: Some(_), .. } => "tensors",
        Error::Data { line: Some(_), .. } => "rows",
        Error::Checkpoint { .. } | Error::Output { .. } | Error::Data { .. } => "files",
        _ => "faults",
    }
}

/// What faults of one kind share: the variant, the advice, and the message without names, shapes and numbers.
fn kind(fault: &Error) -> String {
    let mut kind = format!("{:?} {:?} ", std::mem::discriminant(fault), fault.hint());
    let (mut quoted, mut depth) = (false, 0);
    for c in split(fault).1.chars() {
        match c {
            '`' => quoted = !quoted,
            '[' => depth += 1,
            ']' => depth -= 1,
            _ => {}
        }
        if !quoted && depth <= 0 && !c.is_ascii_digit() {
            kind.push(c);
        }
    }
    kind
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairing(tensor: &str, fault: &str, hint: &str) -> Error {
        let hint = Some(hint.to_owned());
        Error::Pairing { tensor: Some(tensor.to_owned()), fault: fault.to_owned(), hint }
    }

    fn told(faults: &[Error]) -> Vec<String> {
        groups(faults).iter().flat_map(Group::messages).collect()
    }

    #[test]
    fn many_faults_of_one_kind_are_one_sentence_with_examples() {
        let shapes = (0..5).map(|i| pairing(&format!("w.{i}"), &format!("shapes differ: got [{i}, 2]"), "h"));
        let missing = (0..4).map(|i| pairing(&format!("m.{i}"), "only in tuned", ""));
        let faults: Vec<Error> = shapes.chain(missing).collect();
        assert_eq!(
            told(&faults),
            [
                "5 tensors: shapes differ\n    `w.0`: got [0, 2]\n    `w.1`: got [1, 2]\n    `w.2`: got [2, 2]\n    …",
                "4 tensors: only in tuned: `m.0`, `m.1`, `m.2`, …"
            ]
        );
        let hints: Vec<_> = groups(&faults).iter().map(Group::hint).collect();
        assert_eq!(hints, [Some("h".to_owned()), None]);
    }

    #[test]
    fn faults_of_one_file_name_it_once() {
        let fault = |i: usize| Error::Checkpoint {
            path: "model".into(),
            fault: format!("tensor `w.{i}`: missing, expected shape [{i}]"),
            hint: None,
        };
        let faults: Vec<Error> = (0..9).map(fault).collect();
        let first = "model: 9 faults\n    tensor `w.0`: missing, expected shape [0]\n";
        assert!(told(&faults)[0].starts_with(first), "{:?}", told(&faults));
    }

    #[test]
    fn few_faults_and_faults_without_a_subject_stay_whole() {
        let faults: Vec<Error> = (0..3).map(|i| pairing(&format!("w.{i}"), "only in base", "")).collect();
        assert_eq!(
            told(&faults),
            ["tensor `w.0`: only in base", "tensor `w.1`: only in base", "tensor `w.2`: only in base"]
        );
        let faults: Vec<Error> = (0..4).map(|i| Error::usage(format!("fault {i}"), "")).collect();
        assert_eq!(told(&faults), ["4 faults\n    fault 0\n    fault 1\n    fault 2\n    …"]);
    }
}
