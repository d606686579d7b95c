//! The row that a model is given for a token that it lacks.

use crate::error::Escaped;

/// A model has no row of a token.
pub(crate) const NONE: u32 = u32::MAX;

/// What the recipe says of a token.
#[derive(Debug)]
pub(crate) struct Given {
    /// `None` where it names no source.
    pub(crate) row: Option<Row>,
    /// Whether models that have the token get this row, too.
    pub(crate) force: bool,
}

#[derive(Debug)]
pub(crate) enum Row {
    Zero,
    /// A row of a model by number; `None` for the row of the token itself.
    Of(String, Option<u64>),
}

/// An input of a tensor, and its number of every token of the result.
pub(crate) struct Numbered<'s> {
    /// Its place among the inputs.
    pub(crate) donor: usize,
    pub(crate) model: &'s str,
    pub(crate) numbers: &'s [u32],
    /// Rows of the tensor.
    pub(crate) stored: u64,
}

impl Numbered<'_> {
    pub(crate) fn row(&self, token: usize) -> Option<u64> {
        self.numbers.get(token).filter(|row| **row != NONE).map(|row| u64::from(*row))
    }
}

/// A row in terms of the inputs of a tensor.
#[derive(Debug, PartialEq)]
pub(crate) enum Filler {
    Zero,
    Row(usize, u64),
    Mean(Vec<(usize, u64)>),
}

/// What a model gets that lacks the token of this number: what the recipe says; else the row of the only model that
/// has it; else that of the base; else the mean of those that have it; else zeros.
///
/// # Errors
/// What the recipe says cannot be had from the inputs of this tensor.
pub(crate) fn filler(
    given: Option<&Given>,
    text: &str,
    token: usize,
    base: Option<&str>,
    inputs: &[Numbered<'_>],
) -> Result<Filler, String> {
    if let Some(given) = given {
        let text = Escaped(text);
        let (model, id) = match &given.row {
            Some(Row::Zero) => return Ok(Filler::Zero),
            Some(Row::Of(model, id)) => (model, *id),
            None => return Err(format!("`tokens`: `{text}` needs a `source`")),
        };
        let Some(input) = inputs.iter().find(|input| input.model == model) else {
            return Err(format!("`tokens`: `{text}`: `{}` has no part in this tensor", Escaped(model)));
        };
        let Some(row) = id.or(input.row(token)) else {
            return Err(format!("`tokens`: `{}` has no token `{text}`", Escaped(model)));
        };
        if row >= input.stored {
            let stored = input.stored;
            return Err(format!("`tokens`: `{text}`: row {row} of `{}`, which has {stored}", Escaped(model)));
        }
        return Ok(Filler::Row(input.donor, row));
    }
    // A model that stands twice in a recipe counts once.
    let mut have: Vec<(&str, usize, u64)> = Vec::new();
    for input in inputs {
        if let Some(row) = input.row(token)
            && !have.iter().any(|(model, ..)| *model == input.model)
        {
            have.push((input.model, input.donor, row));
        }
    }
    let of_base = have.iter().find(|(model, ..)| Some(*model) == base);
    Ok(match (have.as_slice(), of_base) {
        ([], _) => Filler::Zero,
        ([(_, donor, row)], _) | (_, Some((_, donor, row))) => Filler::Row(*donor, *row),
        (many, None) => Filler::Mean(many.iter().map(|(_, donor, row)| (*donor, *row)).collect()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Token 0 is in all, 1 in the last only, 2 in both but the first, 3 in none.
    #[test]
    fn the_only_one_comes_before_the_base_and_the_base_before_the_mean() {
        let numbers = [[0, NONE, NONE, NONE], [4, NONE, 5, NONE], [7, 8, 9, NONE]];
        let names = ["a", "b", "c"];
        let inputs: Vec<Numbered<'_>> = (0..3)
            .map(|donor| Numbered { donor, model: names[donor], numbers: &numbers[donor], stored: 10 })
            .collect();
        let of = |token, base| filler(None, "x", token, base, &inputs).unwrap();
        assert_eq!(of(0, Some("b")), Filler::Row(1, 4));
        assert_eq!(of(1, Some("b")), Filler::Row(2, 8));
        assert_eq!(of(2, Some("b")), Filler::Row(1, 5));
        assert_eq!(of(2, Some("a")), Filler::Mean(vec![(1, 5), (2, 9)]));
        assert_eq!(of(2, None), Filler::Mean(vec![(1, 5), (2, 9)]));
        assert_eq!(of(3, None), Filler::Zero);
    }

    #[test]
    fn what_the_recipe_says_must_be_there() {
        let inputs = [Numbered { donor: 0, model: "a", numbers: &[0, NONE], stored: 2 }];
        let of = |row, token| filler(Some(&Given { row, force: true }), "x", token, None, &inputs);
        assert_eq!(of(Some(Row::Of("a".to_owned(), None)), 0), Ok(Filler::Row(0, 0)));
        assert_eq!(of(Some(Row::Of("a".to_owned(), Some(1))), 1), Ok(Filler::Row(0, 1)));
        assert_eq!(of(Some(Row::Zero), 1), Ok(Filler::Zero));
        for (row, fault) in [
            (None, "needs a `source`"),
            (Some(Row::Of("a".to_owned(), None)), "`a` has no token `x`"),
            (Some(Row::Of("a".to_owned(), Some(2))), "row 2 of `a`, which has 2"),
            (Some(Row::Of("b".to_owned(), Some(0))), "`b` has no part"),
        ] {
            let got = of(row, 1).unwrap_err();
            assert!(got.contains(fault), "{got}");
        }
    }
}
