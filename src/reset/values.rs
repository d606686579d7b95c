//! The tensors of a half-reset in memory, without a file.

use std::borrow::Cow;
use std::collections::HashMap;

use super::fate::Fate;
use super::files::add;
use crate::Result;
use crate::surgery::pairing::Pairing;
use crate::surgery::stream::FilePlan;

/// The bytes of tensors, in type and shape of the tuned side, by their names there.
pub type Values<'a> = HashMap<&'a str, Cow<'a, [u8]>>;

/// The tensors that do not keep their tuned bytes. `fates` has one entry per pair.
///
/// # Errors
/// [`crate::Error::Io`] from reading by position.
pub(super) fn values<'a>(pairing: &Pairing<'a>, fates: &[Fate]) -> Result<Values<'a>> {
    let returned = pairing.pairs().iter().zip(fates);
    let returned = returned.filter(|(pair, fate)| pair.base.is_some() && !matches!(fate, Fate::Tuned));
    let mut values = Values::new();
    for (pair, fate) in returned {
        let mut file = FilePlan::new(String::new());
        add(pairing, &mut file, (pair, fate))?;
        let bytes = match file.segments.as_slice() {
            [whole] => whole.bytes()?,
            parts => Cow::Owned(
                parts.iter().map(|part| Ok(part.bytes()?.into_owned())).collect::<Result<Vec<_>>>()?.concat(),
            ),
        };
        values.insert(pair.tuned.info.name.as_str(), bytes);
    }
    Ok(values)
}
