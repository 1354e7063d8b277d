//! An image as pieces: what the destination does not have, and where in what has come before lies what it has.
//!
//! | piece | bytes; numbers are little-endian |
//! | --- | --- |
//! | new | 0, length (4), that many bytes |
//! | known | 1, how many pages (4), number of the first (4) |

use std::io::{self, Read as _};

use bytes::Bytes;

use crate::{
    adapters::received::Received,
    domain::pages::{PAGE, Piece},
};

const NEW: u8 = 0;
const KNOWN: u8 = 1;

/// A part of an image that comes.
pub enum Part {
    /// Bytes of it.
    New(Bytes),
    /// So many pages of what has come before, from the one with this number on.
    Known {
        /// Number of the first.
        first: u32,
        /// How many.
        pages: usize,
    },
}

/// What is sent of a piece of these bytes.
pub fn encode(piece: &Piece, bytes: &Bytes) -> io::Result<Vec<Bytes>> {
    Ok(match piece {
        Piece::New(range) => {
            let length = u32::try_from(range.len()).map_err(io::Error::other)?;
            vec![header(NEW, &[length]), bytes.slice(range.clone())]
        }
        Piece::Known { first, pages } => vec![header(KNOWN, &[*pages, *first])],
    })
}

fn header(kind: u8, numbers: &[u32]) -> Bytes {
    let numbers = numbers.iter().flat_map(|number| number.to_le_bytes());
    std::iter::once(kind).chain(numbers).collect()
}

/// Reads pieces to the end of what comes, and hands on the parts of the image, each with its place in it; how many bytes the image has.
///
/// # Errors
/// Of kind `InvalidData` for what is no piece, or makes more than `most` bytes; what the stream or `give` say.
pub fn decode(content: &mut Received, most: u64, give: &mut dyn FnMut(u64, Part) -> io::Result<()>) -> io::Result<u64> {
    let (mut at, mut kind) = (0_u64, [0]);
    let fits = |at: u64, more: usize| {
        if at.saturating_add(more as u64) > most { Err(invalid(format!("the pieces make more than {most} bytes"))) } else { Ok(()) }
    };
    while content.read(&mut kind)? > 0 {
        match kind {
            [NEW] => {
                let mut left = number(content)? as usize;
                fits(at, left)?;
                while left > 0 {
                    let bytes = content.up_to(left)?.ok_or_else(|| io::Error::new(io::ErrorKind::UnexpectedEof, "a piece ends too early"))?;
                    let length = bytes.len();
                    give(at, Part::New(bytes))?;
                    (left, at) = (left - length, at + length as u64);
                }
            }
            [KNOWN] => {
                let (pages, first) = (number(content)? as usize, number(content)?);
                let length = pages.saturating_mul(PAGE);
                fits(at, length)?;
                give(at, Part::Known { first, pages })?;
                at += length as u64;
            }
            [other] => return Err(invalid(format!("{other} is no kind of piece"))),
        }
    }
    Ok(at)
}

fn number(content: &mut Received) -> io::Result<u32> {
    let mut bytes = [0; 4];
    content.read_exact(&mut bytes)?;
    Ok(u32::from_le_bytes(bytes))
}

fn invalid(problem: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, problem)
}

#[cfg(test)]
mod tests {
    use futures::StreamExt as _;

    use super::*;
    use crate::{
        adapters::received::feed,
        domain::pages::{PageIndex, hash_of},
    };

    fn page(content: u8) -> Vec<u8> {
        vec![content; PAGE]
    }

    fn index(pages: &[u8]) -> PageIndex {
        let mut index = PageIndex::default();
        assert!(pages.iter().all(|content| index.add(hash_of(&page(*content)))));
        index
    }

    /// Decodes bytes that come in chunks of this size, over pages 0, 1, 2 and so on that are full of their number.
    async fn decoded(sent: Vec<u8>, chunk: usize, most: u64) -> io::Result<Vec<u8>> {
        let chunks: Vec<_> = sent.chunks(chunk).map(|chunk| Ok(Bytes::copy_from_slice(chunk))).collect();
        feed(futures::stream::iter(chunks).boxed(), move |mut content| {
            let mut image = vec![];
            let come = decode(&mut content, most, &mut |at, part| {
                assert_eq!(at, image.len() as u64);
                match part {
                    Part::New(bytes) => image.extend_from_slice(&bytes),
                    Part::Known { first, pages } => image.extend((0..pages).flat_map(|at| page(u8::try_from(first as usize + at).unwrap()))),
                }
                Ok(())
            })?;
            assert_eq!(come, image.len() as u64);
            Ok(image)
        })
        .await
    }

    fn encoded(index: &PageIndex, image: &[u8]) -> Vec<u8> {
        let image = Bytes::copy_from_slice(image);
        let hashes: Vec<_> = image.chunks(PAGE).map(hash_of).collect();
        index.pieces(&hashes, image.len(), &mut 0).iter().flat_map(|piece| encode(piece, &image).unwrap()).flatten().collect()
    }

    #[tokio::test]
    async fn an_image_comes_out_as_it_went_in() {
        let many: Vec<u8> = (0..200).collect();
        let images = [
            vec![],
            page(3),
            [page(3), page(4), page(201), page(202), page(0)].concat(),
            [page(201), vec![7; 100]].concat(),
            many.iter().flat_map(|content| page(*content)).collect(),
        ];
        for image in images {
            for chunk in [1, 100, PAGE, 1 << 20] {
                let sent = encoded(&index(&many), &image);
                assert!(sent.len() < image.len() + 30);
                assert_eq!(decoded(sent, chunk, image.len() as u64).await.unwrap(), image, "in chunks of {chunk}");
            }
        }
    }

    #[tokio::test]
    async fn what_is_no_image_is_refused_by_its_reason() {
        let cases = [
            (vec![9], io::ErrorKind::InvalidData, "9 is no kind of piece"),
            (header(KNOWN, &[u32::MAX, 0]).to_vec(), io::ErrorKind::InvalidData, "make more than"),
            (header(NEW, &[u32::MAX]).to_vec(), io::ErrorKind::InvalidData, "make more than"),
            (header(NEW, &[5]).to_vec(), io::ErrorKind::UnexpectedEof, "ends too early"),
            (vec![NEW, 1], io::ErrorKind::UnexpectedEof, ""),
        ];
        for (sent, kind, problem) in cases {
            let error = decoded(sent, 3, 10 * PAGE as u64).await.unwrap_err();
            assert!(error.kind() == kind && error.to_string().contains(problem), "{error:?}");
        }
    }
}
