//! The row of an embedding that a model is given for a token that it lacks.

use crate::error::Escaped;
use crate::merge::tiles::rows::DonorRow;

/// In a list of token ids: the model lacks the token.
pub(crate) const NO_ID: u32 = u32::MAX;

/// What `tokens` of the recipe says of a token, with token ids looked up.
#[derive(Debug)]
pub(crate) struct TokenOverride {
    /// `None` where it names no source.
    pub(crate) row: Option<OverrideRow>,
    /// Whether models that have the token get this row, too.
    pub(crate) force: bool,
}

#[derive(Debug)]
pub(crate) enum OverrideRow {
    Zero,
    /// The row of a token id of a model; `None` for the model's row of the token itself.
    OfModel(String, Option<u64>),
}

/// A tensor that is an input, and the ids that its model gives the tokens of the result.
pub(crate) struct InputTokens<'s> {
    /// Index of the tensor among the inputs.
    pub(crate) donor: usize,
    pub(crate) model: &'s str,
    /// By token of the result.
    pub(crate) ids: &'s [u32],
    /// Rows of the tensor.
    pub(crate) stored: u64,
}

impl InputTokens<'_> {
    /// The row of a token of the result.
    pub(crate) fn row(&self, token: usize) -> Option<u64> {
        self.ids.get(token).filter(|id| **id != NO_ID).map(|id| u64::from(*id))
    }
}

/// The row for a model that lacks a token.
#[derive(Debug, PartialEq)]
pub(crate) enum FallbackRow {
    Zero,
    Donor(DonorRow),
    Mean(Vec<DonorRow>),
}

/// A token of the result.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Token<'s> {
    pub(crate) id: usize,
    pub(crate) text: &'s str,
}

/// The row for models that lack `token`: what the recipe says; else the row of the only model that has it; else that of
/// the model `base`; else the mean over the models that have it; else zeros.
///
/// # Errors
/// The inputs do not have what the recipe says.
pub(crate) fn fallback_row(
    given: Option<&TokenOverride>,
    token: Token<'_>,
    base: Option<&str>,
    inputs: &[InputTokens<'_>],
) -> Result<FallbackRow, String> {
    if let Some(given) = given {
        let text = Escaped(token.text);
        let (model, id) = match &given.row {
            Some(OverrideRow::Zero) => return Ok(FallbackRow::Zero),
            Some(OverrideRow::OfModel(model, id)) => (model, *id),
            None => return Err(format!("`tokens`: `{text}` needs a `source`")),
        };
        let Some(input) = inputs.iter().find(|input| input.model == model) else {
            return Err(format!("`tokens`: `{text}`: `{}` has no part in this tensor", Escaped(model)));
        };
        let Some(row) = id.or(input.row(token.id)) else {
            return Err(format!("`tokens`: `{}` has no token `{text}`", Escaped(model)));
        };
        if row >= input.stored {
            let stored = input.stored;
            return Err(format!("`tokens`: `{text}`: row {row} of `{}`, which has {stored}", Escaped(model)));
        }
        return Ok(FallbackRow::Donor(DonorRow { donor: input.donor, row }));
    }
    // A model that is an input twice counts once.
    let mut having: Vec<(&str, DonorRow)> = Vec::new();
    for input in inputs {
        if let Some(row) = input.row(token.id)
            && !having.iter().any(|(model, _)| *model == input.model)
        {
            having.push((input.model, DonorRow { donor: input.donor, row }));
        }
    }
    let of_base = having.iter().find(|(model, _)| Some(*model) == base);
    Ok(match (having.as_slice(), of_base) {
        ([], _) => FallbackRow::Zero,
        ([(_, row)], _) | (_, Some((_, row))) => FallbackRow::Donor(*row),
        (many, None) => FallbackRow::Mean(many.iter().map(|(_, row)| *row).collect()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(donor: usize, row: u64) -> DonorRow {
        DonorRow { donor, row }
    }

    /// Token 0 is in all, 1 in the last only, 2 in both but the first, 3 in none.
    #[test]
    fn the_only_one_comes_before_the_base_and_the_base_before_the_mean() {
        let ids = [[0, NO_ID, NO_ID, NO_ID], [4, NO_ID, 5, NO_ID], [7, 8, 9, NO_ID]];
        let names = ["a", "b", "c"];
        let inputs: Vec<InputTokens<'_>> = (0..3)
            .map(|donor| InputTokens { donor, model: names[donor], ids: &ids[donor], stored: 10 })
            .collect();
        let of = |id, base| fallback_row(None, Token { id, text: "x" }, base, &inputs).unwrap();
        assert_eq!(of(0, Some("b")), FallbackRow::Donor(row(1, 4)));
        assert_eq!(of(1, Some("b")), FallbackRow::Donor(row(2, 8)));
        assert_eq!(of(2, Some("b")), FallbackRow::Donor(row(1, 5)));
        assert_eq!(of(2, Some("a")), FallbackRow::Mean(vec![row(1, 5), row(2, 9)]));
        assert_eq!(of(2, None), FallbackRow::Mean(vec![row(1, 5), row(2, 9)]));
        assert_eq!(of(3, None), FallbackRow::Zero);
    }

    #[test]
    fn what_the_recipe_says_must_be_there() {
        let inputs = [InputTokens { donor: 0, model: "a", ids: &[0, NO_ID], stored: 2 }];
        let of = |row, id| {
            let given = TokenOverride { row, force: true };
            fallback_row(Some(&given), Token { id, text: "x" }, None, &inputs)
        };
        assert_eq!(
            of(Some(OverrideRow::OfModel("a".to_owned(), None)), 0),
            Ok(FallbackRow::Donor(row(0, 0)))
        );
        assert_eq!(
            of(Some(OverrideRow::OfModel("a".to_owned(), Some(1))), 1),
            Ok(FallbackRow::Donor(row(0, 1)))
        );
        assert_eq!(of(Some(OverrideRow::Zero), 1), Ok(FallbackRow::Zero));
        for (row, fault) in [
            (None, "needs a `source`"),
            (Some(OverrideRow::OfModel("a".to_owned(), None)), "`a` has no token `x`"),
            (Some(OverrideRow::OfModel("a".to_owned(), Some(2))), "row 2 of `a`, which has 2"),
            (Some(OverrideRow::OfModel("b".to_owned(), Some(0))), "`b` has no part"),
        ] {
            let got = of(row, 1).unwrap_err();
            assert!(got.contains(fault), "{got}");
        }
    }
}
