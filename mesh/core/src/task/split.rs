//! Splits of a data set as they are typed: `train`, `train[:10%]`, `train[:500]+validation`. What a slice comes to is
//! left to the reader, who knows how many rows there are.

/// One split, or a slice of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The split's name.
    pub name: String,
    /// Which of its rows; all when absent.
    pub slice: Option<Slice>,
}

/// From one row to another, as Python's slices: negative bounds count from the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slice {
    /// The first row; the very first when absent.
    pub from: Option<i64>,
    /// The row after the last one; the end when absent.
    pub to: Option<i64>,
    /// Whether the bounds are percent of the rows.
    pub percent: bool,
}

/// Reads a split.
///
/// # Errors
/// What is wrong with it.
pub fn parse(text: &str) -> Result<Vec<Part>, String> {
    text.split('+').map(|part| one(part.trim())).collect()
}

fn one(text: &str) -> Result<Part, String> {
    let (name, slice) = match text.split_once('[') {
        None => (text, None),
        Some((name, rest)) => {
            let inner = rest.strip_suffix(']').ok_or_else(|| format!("`[` of `{text}` is not closed at its end"))?;
            (name, Some(slice(inner).map_err(|problem| format!("`{text}`: {problem}"))?))
        }
    };
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if !name.starts_with(|c: char| c.is_ascii_alphanumeric()) || !name.chars().all(allowed) || name.contains("..") {
        return Err(format!("`{name}` is no name of a split"));
    }
    Ok(Part { name: name.to_owned(), slice })
}

fn slice(text: &str) -> Result<Slice, String> {
    let (from, to) = text.split_once(':').ok_or("a slice has a `:`, as in [:10%] or [100:200]")?;
    let (from, to) = (bound(from)?, bound(to)?);
    let percents: Vec<bool> = [&from, &to].into_iter().flatten().map(|(_, percent)| *percent).collect();
    if percents.len() == 2 && percents[0] != percents[1] {
        return Err("both bounds are rows, or both are percent".into());
    }
    let percent = percents.first() == Some(&true);
    Ok(Slice { from: from.map(|(n, _)| n), to: to.map(|(n, _)| n), percent })
}

fn bound(text: &str) -> Result<Option<(i64, bool)>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let (number, percent) = match text.strip_suffix('%') {
        Some(number) => (number, true),
        None => (text, false),
    };
    let number: i64 = number.parse().map_err(|_| format!("`{text}` is no whole number of rows and no percentage"))?;
    if percent && !(-100..=100).contains(&number) {
        return Err(format!("`{text}` is more than all of it"));
    }
    Ok(Some((number, percent)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_slices_and_sums_are_read() {
        let part = |name: &str, slice| Part { name: name.into(), slice };
        let of = |from, to, percent| Some(Slice { from, to, percent });
        for (text, want) in [
            ("train", vec![part("train", None)]),
            ("train[:10%]", vec![part("train", of(None, Some(10), true))]),
            (
                "test[-100:]+dev[5:7]",
                vec![part("test", of(Some(-100), None, false)), part("dev", of(Some(5), Some(7), false))],
            ),
            ("train_sft[:]", vec![part("train_sft", of(None, None, false))]),
        ] {
            assert_eq!(parse(text).unwrap(), want, "{text}");
        }
        for bad in
            ["", "+train", "train[", "train[10%]", "train[:10%", "train[1:10%]", "train[:x]", "train[:101%]", "a]b"]
        {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
