//! PDF: the text that its pages draw, by page.
//!
//! Where a line ends and a word begins a PDF does not say; both are taken from where it draws. What is drawn large is a
//! heading. Text comes in the order it is drawn in, which for columns is most often the order it is read in, for tables
//! row by row at best. Text in pictures and in form objects is not read, nor that of fonts that don't say what they mean.

use std::collections::BTreeMap;

use lopdf::{Dictionary, Document as Pdf, Encoding, Error, LoadOptions, Object, content::Content};

use super::{Bounds, Document, Kind, ParseError, build::Builder};

/// A gap of this part of the letters' size parts words.
const WORD_GAP: f32 = 0.2;
/// Lines apart by this much more than lines commonly are belong to two paragraphs.
const PARAGRAPH_GAP: f32 = 1.4;
/// Letters larger than most by this much are a heading's.
const HEADING_SIZE: f32 = 1.15;
/// A heading's length in chars.
const HEADING_CHARS: usize = 160;

pub(super) fn parse(bytes: &[u8], bounds: &Bounds) -> Result<Document, ParseError> {
    let options = LoadOptions::with_max_decompressed_size(bounds.unpacked_bytes);
    let pdf = Pdf::load_mem_with_options(bytes, options).map_err(|error| match error {
        Error::InvalidPassword | Error::Decryption(_) | Error::UnsupportedSecurityHandler(_) => ParseError::Encrypted,
        other => ParseError::malformed("PDF", other),
    })?;
    if pdf.is_encrypted() {
        return Err(ParseError::Encrypted);
    }
    let mut builder = Builder::new(bounds);
    if let Some(title) = title(&pdf) {
        builder.title(&title);
    }
    let pages = pdf.get_pages();
    let mut unread = Vec::new();
    for (&number, &id) in &pages {
        builder.page(number);
        match lines(&pdf, id, bounds) {
            Ok(lines) => write(&mut builder, &lines)?,
            Err(error) => unread.push(format!("page {number}: {error}")),
        }
    }
    let (count, bad) = (u32::try_from(pages.len()).unwrap_or(u32::MAX), unread.len());
    unread.truncate(8);
    let document = builder.done();
    if document.blocks.is_empty() {
        return Err(match unread.first() {
            Some(first) => ParseError::malformed("PDF", first),
            None => ParseError::NoText { pages: count },
        });
    }
    let more = (bad > unread.len()).then(|| format!("{bad} pages in all could not be read"));
    Ok(Document { notes: document.notes.into_iter().chain(unread).chain(more).collect(), ..document })
}

fn title(pdf: &Pdf) -> Option<String> {
    let info = pdf.trailer.get_deref(b"Info", pdf).and_then(Object::as_dict).ok()?;
    lopdf::decode_text_string(info.get_deref(b"Title", pdf).ok()?).ok()
}

/// A line as it is drawn: height on the page, size of its letters, words.
struct Line {
    y: f32,
    size: f32,
    words: String,
}

struct Font<'a> {
    encoding: Encoding<'a>,
    first: i64,
    /// Of simple fonts, in thousandths of the size.
    widths: Vec<f32>,
}

impl<'a> Font<'a> {
    fn read(pdf: &'a Pdf, font: &'a Dictionary, bounds: &Bounds) -> Option<Self> {
        let encoding = font.get_font_encoding_with_limit(pdf, bounds.unpacked_bytes).ok()?;
        let first = font.get_deref(b"FirstChar", pdf).and_then(Object::as_i64).unwrap_or(0);
        let widths = font.get_deref(b"Widths", pdf).and_then(Object::as_array);
        let widths = widths.map(|widths| widths.iter().map(|width| width.as_float().unwrap_or(0.0)).collect());
        Some(Self { encoding, first, widths: widths.unwrap_or_default() })
    }

    /// How far the pen moves, in parts of the size; half of it a letter where the font does not say.
    fn width(&self, bytes: &[u8], chars: usize) -> f32 {
        if self.widths.is_empty() {
            return chars as f32 / 2.0;
        }
        let width = |byte: &u8| usize::try_from(i64::from(*byte) - self.first).ok().and_then(|at| self.widths.get(at));
        bytes.iter().map(|byte| width(byte).copied().filter(|width| *width > 0.0).unwrap_or(500.0)).sum::<f32>()
            / 1000.0
    }
}

/// How a place is moved and stretched: `x' = ax + cy + e`, `y' = bx + dy + f`.
#[derive(Clone, Copy)]
struct Matrix([f32; 6]);

impl Matrix {
    const SAME: Self = Self([1.0, 0.0, 0.0, 1.0, 0.0, 0.0]);

    fn moved(x: f32, y: f32) -> Self {
        Self([1.0, 0.0, 0.0, 1.0, x, y])
    }

    /// This first, then another.
    fn then(self, Self([a, b, c, d, e, f]): Self) -> Self {
        let Self([g, h, i, j, k, l]) = self;
        Self([a * g + c * h, b * g + d * h, a * i + c * j, b * i + d * j, a * k + c * l + e, b * k + d * l + f])
    }
}

/// The pen: where it is, and where it was when it last wrote.
struct Pen {
    /// Of the page, with what is kept of it for later.
    page: Matrix,
    kept: Vec<Matrix>,
    /// Of the line that is written.
    line: Matrix,
    /// How far along the line.
    along: f32,
    size: f32,
    leading: f32,
    end_x: f32,
    lines: Vec<Line>,
}

impl Pen {
    fn new() -> Self {
        let (page, kept, lines) = (Matrix::SAME, Vec::new(), Vec::new());
        Self { page, kept, line: Matrix::SAME, along: 0.0, size: 1.0, leading: 0.0, end_x: 0.0, lines }
    }

    fn begin(&mut self, line: Matrix) {
        (self.line, self.along) = (line, 0.0);
    }

    fn jump(&mut self, dx: f32, dy: f32) {
        self.begin(Matrix::moved(dx, dy).then(self.line));
    }

    fn show(&mut self, words: &str, width: f32) {
        let Matrix([_, _, c, d, x, y]) = Matrix::moved(self.along, 0.0).then(self.line).then(self.page);
        let size = (self.size * c.hypot(d)).abs().max(0.01);
        match self.lines.last_mut().filter(|line| (line.y - y).abs() < size * 0.3) {
            Some(line) => {
                if x - self.end_x > size * WORD_GAP && !line.words.ends_with(' ') {
                    line.words.push(' ');
                }
                line.words.push_str(words);
            }
            None => self.lines.push(Line { y, size, words: words.to_owned() }),
        }
        self.along += width * self.size;
        let Matrix([.., end_x, _]) = Matrix::moved(self.along, 0.0).then(self.line).then(self.page);
        self.end_x = end_x;
    }

    /// What has to do with places.
    fn moves(&mut self, operator: &str, operands: &[Object]) {
        /// States within each other; what a page may ask for is bounded.
        const KEPT: usize = 256;
        let number = |at: usize| operands.get(at).and_then(|operand| operand.as_float().ok()).unwrap_or(0.0);
        let matrix = || Matrix(std::array::from_fn(number));
        match operator {
            "q" if self.kept.len() < KEPT => self.kept.push(self.page),
            "Q" => self.page = self.kept.pop().unwrap_or(self.page),
            "cm" => self.page = matrix().then(self.page),
            "BT" => self.begin(Matrix::SAME),
            "TL" => self.leading = number(0),
            "Td" => self.jump(number(0), number(1)),
            "TD" => {
                self.leading = -number(1);
                self.jump(number(0), number(1));
            }
            "Tm" => self.begin(matrix()),
            "T*" | "'" | "\"" => self.jump(0.0, -self.leading),
            _ => {}
        }
    }
}

fn lines(pdf: &Pdf, page: lopdf::ObjectId, bounds: &Bounds) -> Result<Vec<Line>, Error> {
    let fonts = pdf.get_page_fonts(page)?;
    let fonts: BTreeMap<_, _> =
        fonts.into_iter().filter_map(|(name, font)| Some((name, Font::read(pdf, font, bounds)?))).collect();
    let content = Content::decode(&pdf.get_page_content_with_limit(page, bounds.unpacked_bytes)?)?;
    let mut pen = Pen::new();
    let mut font = None;
    for operation in &content.operations {
        let operands = &operation.operands;
        pen.moves(&operation.operator, operands);
        match operation.operator.as_str() {
            "Tf" => {
                font = operands.first().and_then(|name| name.as_name().ok()).and_then(|name| fonts.get(name));
                pen.size = operands.get(1).and_then(|size| size.as_float().ok()).unwrap_or(1.0);
            }
            "Tj" | "TJ" | "'" | "\"" => show(&mut pen, font, operands),
            _ => {}
        }
    }
    Ok(pen.lines)
}

/// Two letters that a font draws as one are two again, or nobody would find their word.
fn unlinked(words: &str) -> String {
    const LINKED: [(char, &str); 7] = [
        ('\u{fb00}', "ff"),
        ('\u{fb01}', "fi"),
        ('\u{fb02}', "fl"),
        ('\u{fb03}', "ffi"),
        ('\u{fb04}', "ffl"),
        ('\u{fb05}', "st"),
        ('\u{fb06}', "st"),
    ];
    LINKED.iter().fold(words.to_owned(), |words, (linked, letters)| words.replace(*linked, letters))
}

fn show(pen: &mut Pen, font: Option<&Font<'_>>, operands: &[Object]) {
    let Some(font) = font else {
        return;
    };
    for operand in operands {
        match operand {
            Object::String(bytes, _) => {
                let words = Pdf::decode_text(&font.encoding, bytes).unwrap_or_default();
                let width = font.width(bytes, words.chars().count());
                pen.show(&unlinked(&words), width);
            }
            // An array holds strings and moves back between them, and no arrays.
            Object::Array(parts) => {
                for part in parts {
                    match part {
                        Object::String(..) => show(pen, Some(font), std::slice::from_ref(part)),
                        other => pen.along -= other.as_float().unwrap_or(0.0) / 1000.0 * pen.size,
                    }
                }
            }
            _ => {}
        }
    }
}

/// The number that one of so many is at most.
fn quantile(mut numbers: Vec<f32>, of: usize) -> Option<f32> {
    numbers.sort_by(f32::total_cmp);
    numbers.get(numbers.len() / of).copied()
}

/// Lines to paragraphs and headings.
fn write(builder: &mut Builder, lines: &[Line]) -> Result<(), ParseError> {
    let lines: Vec<_> = lines.iter().filter(|line| !line.words.trim().is_empty()).collect();
    let common = quantile(lines.iter().map(|line| line.size).collect(), 2).unwrap_or(1.0);
    let steps = lines.windows(2).map(|pair| pair[0].y - pair[1].y).filter(|step| *step > common / 2.0).collect();
    // Lines within paragraphs are nearer than paragraphs, and on a page of short ones there are few of them.
    let step = quantile(steps, 4).unwrap_or(common);
    let mut at = 0;
    while at < lines.len() {
        let first = lines[at];
        let mut words = first.words.trim().to_owned();
        at += 1;
        while let Some(next) = lines.get(at) {
            let gap = lines[at - 1].y - next.y;
            if !(0.0..=step * PARAGRAPH_GAP).contains(&gap) || (next.size - first.size).abs() > common * 0.1 {
                break;
            }
            let begins = next.words.trim_start();
            if words.ends_with('-') && begins.starts_with(char::is_lowercase) {
                words.pop();
            } else {
                words.push(' ');
            }
            words.push_str(begins.trim_end());
            at += 1;
        }
        let larger = first.size / common;
        if larger > HEADING_SIZE && words.chars().count() <= HEADING_CHARS {
            let level = if larger > 1.6 {
                1
            } else if larger > 1.3 {
                2
            } else {
                3
            };
            builder.heading(level, &words)?;
        } else {
            builder.block(&words, Kind::Text, None)?;
        }
    }
    Ok(())
}
