//! SplitMix64: the same numbers for the same seed, whatever version of whatever crate.

#[derive(Clone, Debug)]
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`; 0 if `n` is 0.
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    pub fn index(&mut self, len: usize) -> usize {
        self.below(len as u64) as usize
    }

    /// True in so many of 100 cases.
    pub fn percent(&mut self, n: u64) -> bool {
        self.below(100) < n
    }

    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> Option<&'a T> {
        if items.is_empty() { None } else { items.get(self.index(items.len())) }
    }

    /// Bytes that don't compress.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(len + 8);
        while out.len() < len {
            out.extend_from_slice(&self.next().to_le_bytes());
        }
        out.truncate(len);
        out
    }

    /// File content: incompressible, text, or one of a few blocks that come again and again.
    pub fn content(&mut self, len: usize) -> Vec<u8> {
        match self.below(4) {
            0 => {
                let mut line = 0u64;
                let mut out = Vec::with_capacity(len + 64);
                while out.len() < len {
                    line += 1;
                    out.extend_from_slice(
                        format!("{line:06} INSERT INTO t VALUES ({});\n", line * 7).as_bytes(),
                    );
                }
                out.truncate(len);
                out
            }
            1 => Rng(0xb10c + self.below(3)).bytes(len),
            _ => Rng(self.next()).bytes(len),
        }
    }
}
