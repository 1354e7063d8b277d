//! Pre-copy: the pages of a container that its destination has before the container is frozen, found again by their content.
//!
//! Nothing is believed of when a page was written: what CRIU dumps of the frozen container is compared, and what differs is sent. So it needs no tracking of
//! changes by the kernel, and a page that was read while it was being written to costs no more than to be sent once more.

use std::{collections::HashMap, ops::Range};

/// Bytes of a page as it is hashed and found again. CRIU's images consist of the kernel's pages, which are as large or a multiple of it.
pub const PAGE: usize = 4096;

/// Hash of a page's content.
pub type PageHash = [u8; blake3::OUT_LEN];

/// The hash of a page.
#[must_use]
pub fn hash_of(page: &[u8]) -> PageHash {
    blake3::hash(page).into()
}

/// The pages that a destination has of one container, in the order in which they were sent.
#[derive(Debug, Default)]
pub struct PageIndex {
    hashes: Vec<PageHash>,
    /// The first page with a hash that begins so.
    numbers: HashMap<[u8; 8], u32>,
}

/// A part of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// These bytes of it, which the destination does not have.
    New(Range<usize>),
    /// So many pages that the destination has, from the one with this number on.
    Known {
        /// Number of the first.
        first: u32,
        /// How many.
        pages: u32,
    },
}

impl Piece {
    /// Bytes of it that the destination has.
    #[must_use]
    pub fn known_bytes(&self) -> u64 {
        match self {
            Self::New(_) => 0,
            Self::Known { pages, .. } => u64::from(*pages) * PAGE as u64,
        }
    }
}

impl PageIndex {
    /// Notes a page, which gets the next number; false where as many are noted as can be numbered.
    pub fn add(&mut self, page: PageHash) -> bool {
        let Ok(next) = u32::try_from(self.hashes.len()) else { return false };
        self.hashes.push(page);
        self.numbers.entry(beginning(&page)).or_insert(next);
        true
    }

    /// Bytes that the destination has.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        (self.hashes.len() * PAGE) as u64
    }

    fn is(&self, number: u32, page: &PageHash) -> bool {
        usize::try_from(number).ok().and_then(|number| self.hashes.get(number)) == Some(page)
    }

    /// Which of an image's pages, by their hashes, the destination has; `bytes` is the length of all of them. One that is not whole is new. `next` is the number that the
    /// first of them has where the image goes on as the pages were sent, and is moved on: for whoever has them in that order nothing is to be done then.
    #[must_use]
    pub fn pieces(&self, hashes: &[PageHash], bytes: usize, next: &mut u32) -> Vec<Piece> {
        let mut pieces = vec![];
        for (at, hash) in hashes.iter().enumerate() {
            let (begin, end) = (at * PAGE, bytes.min((at + 1) * PAGE));
            let goes_on = Some(*next).filter(|next| self.is(*next, hash));
            let known = goes_on.or_else(|| self.numbers.get(&beginning(hash)).copied().filter(|number| self.is(*number, hash)));
            let known = known.filter(|_| end - begin == PAGE);
            *next = known.unwrap_or(*next).saturating_add(1);
            match (known, pieces.last_mut()) {
                (Some(number), Some(Piece::Known { first, pages })) if first.checked_add(*pages) == Some(number) => *pages += 1,
                (Some(number), _) => pieces.push(Piece::Known { first: number, pages: 1 }),
                (None, Some(Piece::New(range))) => range.end = end,
                (None, _) => pieces.push(Piece::New(begin..end)),
            }
        }
        pieces
    }
}

fn beginning(page: &PageHash) -> [u8; 8] {
    page[..8].try_into().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(content: u8) -> Vec<u8> {
        vec![content; PAGE]
    }

    fn index(pages: &[u8]) -> PageIndex {
        let mut index = PageIndex::default();
        for content in pages {
            index.add(hash_of(&page(*content)));
        }
        index
    }

    fn pieces(index: &PageIndex, image: &[u8], next: &mut u32) -> Vec<Piece> {
        index.pieces(&image.chunks(PAGE).map(hash_of).collect::<Vec<_>>(), image.len(), next)
    }

    #[test]
    fn neighbours_are_one_piece_and_what_is_unknown_is_new() {
        let index = index(&[1, 2, 3]);
        assert_eq!(index.bytes(), 3 * PAGE as u64);
        let image = [page(1), page(2), page(9), page(8), page(2), page(1), page(3)].concat();
        let expected = [
            Piece::Known { first: 0, pages: 2 },
            Piece::New(2 * PAGE..4 * PAGE),
            Piece::Known { first: 1, pages: 1 },
            Piece::Known { first: 0, pages: 1 },
            Piece::Known { first: 2, pages: 1 },
        ];
        assert_eq!(pieces(&index, &image, &mut 0), expected);
        assert_eq!(pieces(&index, &[], &mut 0), []);
        assert_eq!(pieces(&index, &page(1)[..10], &mut 0), [Piece::New(0..10)], "no whole page");
    }

    #[test]
    fn of_pages_that_are_alike_the_next_is_taken() {
        let index = index(&[0, 1, 0, 0, 2]);
        let mut next = 0;
        let image = [page(0), page(9), page(0), page(0)].concat();
        let expected = [Piece::Known { first: 0, pages: 1 }, Piece::New(PAGE..2 * PAGE), Piece::Known { first: 2, pages: 2 }];
        assert_eq!(pieces(&index, &image, &mut next), expected, "the new one stands in the place of another");
        assert_eq!(next, 4, "and the image goes on from there");
        assert_eq!(
            pieces(&index, &[page(2), page(0)].concat(), &mut next),
            [Piece::Known { first: 4, pages: 1 }, Piece::Known { first: 0, pages: 1 }]
        );
    }
}
