//! Packs: section 5 of docs/format.md.

use zeroize::Zeroizing;

use crate::bytes::{Id, Reader, hex};
use crate::crypto::{FrameCipher, Secret, h, kdf, kh, xcc_open};
use crate::keys::Keys;
use crate::report::{Class, Fault, damaged, fault, malformed, not_authentic, too_long, unreadable};
use crate::source::{Handle, Source, read_exact};
use crate::xwing::CIPHERTEXT_BYTES;

/// Bytes before the first frame.
pub const HEADER_BYTES: u64 = 1168;
/// Bytes of the trailer.
pub const TRAILER_BYTES: u64 = 64;
/// Most bytes of a pack.
pub const PACK_BYTES_MAX: u64 = 1 << 30;
/// Plaintext bytes of every block but the last of a chunk.
pub const BLOCK_BYTES: u32 = 131_072;
/// Most plaintext bytes of a chunk.
pub const CHUNK_BYTES_MAX: u32 = 8 << 20;
const TAG_BYTES: u64 = 16;

/// A pack of data chunks.
pub const KIND_DATA: u8 = 1;
/// A pack of tree objects.
pub const KIND_TREE: u8 = 2;

/// The first 1168 bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackHeader {
    /// 1 data, 2 tree.
    pub kind: u8,
    /// 1 chacha20-poly1305, 2 aes-256-gcm.
    pub cipher: u8,
    /// The vault's id.
    pub vault_id: [u8; 16],
    /// Random, one for each pack.
    pub uid: [u8; 16],
    /// X-Wing ciphertext.
    pub ciphertext: [u8; CIPHERTEXT_BYTES],
}

/// Decodes the first 1168 bytes of a pack.
pub fn parse_header(bytes: &[u8]) -> Result<PackHeader, Fault> {
    let mut r = Reader::new(bytes, "pack header");
    if r.take(8)? != b"SRPACK\x00\x01" {
        return Err(malformed("", "not a pack of format 1"));
    }
    let kind = r.u8()?;
    if !matches!(kind, KIND_DATA | KIND_TREE) {
        return Err(malformed("PACK-6", format!("pack kind {kind}")));
    }
    let cipher = r.u8()?;
    if !matches!(cipher, 1 | 2) {
        return Err(malformed("", format!("pack cipher {cipher}")));
    }
    if r.array::<6>()? != [0; 6] {
        return Err(malformed("GEN-4", "reserved bytes of the pack header are not zero"));
    }
    let header = PackHeader { kind, cipher, vault_id: r.array()?, uid: r.array()?, ciphertext: r.array()? };
    r.finish()?;
    Ok(header)
}

/// The plaintext of the last 64 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trailer {
    /// F: where the footer starts.
    pub footer_at: u64,
    /// L: bytes of the footer, sealed and with its nonce.
    pub footer_bytes: u32,
    /// Chunks in the pack.
    pub chunks: u32,
    /// Length of the file.
    pub file_bytes: u64,
}

/// Decodes a trailer's plaintext (PACK-1). That its length is the file's is left to the caller.
pub fn parse_trailer(plain: &[u8]) -> Result<Trailer, Fault> {
    let mut r = Reader::new(plain, "pack trailer");
    let t = Trailer { footer_at: r.u64()?, footer_bytes: r.u32()?, chunks: r.u32()?, file_bytes: r.u64()? };
    r.finish()?;
    if t.file_bytes > PACK_BYTES_MAX {
        return Err(too_long("PACK-1", "longer than 1 GiB"));
    }
    let end = t.footer_at.checked_add(u64::from(t.footer_bytes)).and_then(|n| n.checked_add(TRAILER_BYTES));
    if t.footer_at < HEADER_BYTES || end.is_none_or(|end| end > t.file_bytes) {
        return Err(malformed("PACK-1", "its footer lies outside of it"));
    }
    Ok(t)
}

/// One chunk as the footer describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkRecord {
    /// Keyed hash of its plaintext.
    pub id: Id,
    /// Where its first frame starts.
    pub offset: u32,
    /// Number of its first frame.
    pub first_frame: u32,
    /// Plaintext bytes.
    pub bytes: u32,
    /// Index of its first block in [`Footer::blocks`].
    pub first_block: u32,
}

impl ChunkRecord {
    /// How many blocks, and so frames, it has.
    pub fn blocks(&self) -> u32 {
        self.bytes.div_ceil(BLOCK_BYTES)
    }

    /// Plaintext bytes of its block `n`.
    fn block_bytes(&self, n: u32) -> u32 {
        (self.bytes - n * BLOCK_BYTES).min(BLOCK_BYTES)
    }
}

/// A decoded footer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Footer {
    /// The chunks in file order.
    pub chunks: Vec<ChunkRecord>,
    /// For each block of each chunk: codec in the top 2 bits, body length in the other 30.
    pub blocks: Vec<u32>,
}

fn codec_of(block: u32) -> u8 {
    (block >> 30) as u8
}

fn body_of(block: u32) -> u32 {
    block & 0x3fff_ffff
}

/// Decodes a footer's plaintext: PACK-2, PACK-3, PACK-4 and the sizes of chunks.
pub fn parse_footer(plain: &[u8], footer_at: u64) -> Result<Footer, Fault> {
    let mut r = Reader::new(plain, "pack footer");
    let count = r.u32()?;
    // A chunk takes 44 bytes and 4 for its first block.
    let count = r.fits(u64::from(count), 48)?;
    let mut footer = Footer { chunks: Vec::with_capacity(count), blocks: Vec::with_capacity(count) };
    let mut at = HEADER_BYTES;
    for n in 0..count {
        let first_block =
            u32::try_from(footer.blocks.len()).map_err(|_| malformed("GEN-3", "too many blocks"))?;
        let chunk = ChunkRecord {
            id: r.array()?,
            offset: r.u32()?,
            first_frame: r.u32()?,
            bytes: r.u32()?,
            first_block,
        };
        if chunk.bytes == 0 || chunk.bytes > CHUNK_BYTES_MAX {
            return Err(malformed("PACK-4", format!("chunk {n} of {} bytes", chunk.bytes)));
        }
        if u64::from(chunk.offset) != at {
            return Err(malformed("PACK-2", format!("chunk {n} starts at {} and not at {at}", chunk.offset)));
        }
        for b in 0..chunk.blocks() {
            let block = r.u32()?;
            let (codec, body, plain) = (codec_of(block), body_of(block), chunk.block_bytes(b));
            if codec == 3 {
                return Err(malformed("PACK-4", format!("chunk {n} has a block of codec 3")));
            }
            if body > plain || (codec == 0 && body != plain) {
                return Err(malformed("PACK-4", format!("chunk {n} has a body of {body} bytes for {plain}")));
            }
            at += u64::from(body) + TAG_BYTES;
            footer.blocks.push(block);
        }
        footer.chunks.push(chunk);
    }
    r.finish()?;
    if at != footer_at {
        return Err(malformed("PACK-2", format!("chunks end at {at}, the footer starts at {footer_at}")));
    }
    let mut frames: Vec<(u32, u64)> = footer
        .chunks
        .iter()
        .map(|c| (c.first_frame, u64::from(c.first_frame) + u64::from(c.blocks())))
        .collect();
    frames.sort_unstable();
    if frames.windows(2).any(|pair| pair[0].1 > u64::from(pair[1].0)) {
        return Err(malformed("PACK-3", "a frame number is used twice"));
    }
    Ok(footer)
}

/// The Padme length of `n` bytes (PURBs, PETS 2019).
pub fn padme(n: u64) -> u64 {
    if n < 2 {
        return n;
    }
    let exponent = n.ilog2();
    let low_bits = exponent - (exponent.ilog2() + 1).min(exponent);
    let mask = (1u64 << low_bits) - 1;
    n.saturating_add(mask) & !mask
}

/// Streams `file` through BLAKE3: the name that it must have. `step` is told of each piece and may stop with false.
pub fn hash_file(
    file: &(dyn Handle + '_),
    path: &str,
    len: u64,
    step: &mut dyn FnMut(u64) -> bool,
) -> Result<Option<Id>, Fault> {
    let mut hasher = blake3::Hasher::new();
    let mut buf = vec![0u8; 1 << 20];
    let mut at = 0u64;
    while at < len {
        let n = usize::try_from(len - at).map_or(buf.len(), |left| left.min(buf.len()));
        read_exact(file, path, at, &mut buf[..n])?;
        hasher.update(&buf[..n]);
        at += n as u64;
        if !step(n as u64) {
            return Ok(None);
        }
    }
    Ok(Some(*hasher.finalize().as_bytes()))
}

/// Where a pack with this name stands.
pub fn path_of(name: &Id) -> String {
    let name = hex(name);
    format!("packs/{}/{name}", &name[..2])
}

/// What the header of a pack gives: its keys, and the ciphers that they are for.
pub struct PackKeys {
    /// The pack's header.
    pub header: PackHeader,
    cipher: FrameCipher,
    footer_key: Secret,
    padding_key: Secret,
    frame_aad: Vec<u8>,
}

/// What the associated data of a frame says of it.
#[derive(Debug, Clone, Copy)]
pub struct FrameInfo {
    /// Its number in the pack.
    pub number: u64,
    /// The chunk that it is of.
    pub id: Id,
    /// Its block's number in the chunk.
    pub block: u32,
    /// Whether that is the chunk's last block.
    pub last: bool,
    /// The block's codec.
    pub codec: u8,
    /// Plaintext bytes of the block.
    pub block_bytes: u32,
}

impl PackKeys {
    /// Decodes the first 1168 bytes of a pack and derives its keys from them.
    pub fn new(head: &[u8], keys: &Keys, vault_id: &[u8; 16], cipher: u8) -> Result<Self, Fault> {
        let header = parse_header(head)?;
        if header.vault_id != *vault_id {
            return Err(fault(Class::Forged, "", "it belongs to another vault"));
        }
        if header.cipher != cipher {
            return Err(fault(Class::Forged, "", "its cipher is not the vault's"));
        }
        let ss = keys.kem.decapsulate(&header.ciphertext);
        let pack_key = kdf("strongroom 2026 v1 pack key", &[&*ss, head]);
        Ok(Self {
            cipher: FrameCipher::new(header.cipher, &pack_key)
                .ok_or_else(|| malformed("", format!("pack cipher {}", header.cipher)))?,
            footer_key: kdf("strongroom 2026 v1 pack footer", &[&*pack_key]),
            padding_key: kdf("strongroom 2026 v1 pack padding", &[&*pack_key]),
            frame_aad: [&b"strongroom v1 frame"[..], &header.vault_id, &header.uid].concat(),
            header,
        })
    }

    /// Opens a frame: the body as its codec left it; none if it is not authentic.
    pub fn open_frame(&self, info: &FrameInfo, frame: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let body_bytes = u32::try_from(frame.len().checked_sub(TAG_BYTES as usize)?).ok()?;
        let mut nonce = [0u8; 12];
        nonce[4..].copy_from_slice(&info.number.to_le_bytes());
        let mut aad = self.frame_aad.clone();
        aad.extend_from_slice(&info.number.to_le_bytes());
        aad.extend_from_slice(&info.id);
        aad.extend_from_slice(&info.block.to_le_bytes());
        aad.push(u8::from(info.last));
        aad.push(info.codec);
        aad.extend_from_slice(&info.block_bytes.to_le_bytes());
        aad.extend_from_slice(&body_bytes.to_le_bytes());
        self.cipher.open(&nonce, &aad, frame).map(Zeroizing::new)
    }

    /// Opens footer or trailer: nonce and ciphertext.
    fn open_part(&self, label: &[u8], sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let (nonce, sealed) = sealed.split_first_chunk::<24>()?;
        let aad = [label, &self.header.vault_id, &self.header.uid, &[self.header.kind]].concat();
        xcc_open(&self.footer_key, nonce, &aad, sealed)
    }
}

/// An opened pack: its header, trailer and footer are authentic and well formed. Frames are checked when read.
pub struct Pack {
    /// Its path in the vault.
    pub path: String,
    /// Its header and keys.
    pub keys: PackKeys,
    /// Its trailer.
    pub trailer: Trailer,
    /// Its footer.
    pub footer: Footer,
    id_key: Secret,
}

impl Pack {
    /// Reads and checks header, trailer and footer of the pack file at `path`.
    pub fn open(
        source: &dyn Source,
        path: &str,
        keys: &Keys,
        vault_id: &[u8; 16],
        cipher: u8,
    ) -> Result<Self, Fault> {
        let len = source.len(path).map_err(|e| unreadable("opening", &e))?;
        let file = source.open(path).map_err(|e| unreadable("opening", &e))?;
        if len < HEADER_BYTES + TRAILER_BYTES {
            return Err(malformed("PACK-1", format!("only {len} bytes long")));
        }
        if len > PACK_BYTES_MAX {
            return Err(too_long("PACK-1", "longer than 1 GiB"));
        }
        let mut head = [0u8; HEADER_BYTES as usize];
        read_exact(&*file, path, 0, &mut head)?;
        let (data_id, tree_id) = (&keys.data_id, &keys.tree_id);
        let keys = PackKeys::new(&head, keys, vault_id, cipher)?;
        let id_key = if keys.header.kind == KIND_DATA { data_id.clone() } else { tree_id.clone() };

        let mut tail = [0u8; TRAILER_BYTES as usize];
        read_exact(&*file, path, len - TRAILER_BYTES, &mut tail)?;
        let plain = keys.open_part(b"strongroom v1 trailer", &tail).ok_or_else(|| {
            not_authentic("its trailer or its header is damaged, or it was made for another key")
        })?;
        let trailer = parse_trailer(&plain)?;
        if trailer.file_bytes != len {
            let what = format!("its trailer says {} bytes, it has {len}", trailer.file_bytes);
            return Err(malformed("PACK-1", what));
        }

        let mut sealed = vec![0u8; trailer.footer_bytes as usize];
        read_exact(&*file, path, trailer.footer_at, &mut sealed)?;
        let plain = keys
            .open_part(b"strongroom v1 footer", &sealed)
            .ok_or_else(|| not_authentic("its footer is damaged"))?;
        let footer = parse_footer(&plain, trailer.footer_at)?;
        if footer.chunks.len() != trailer.chunks as usize {
            let what = format!("footer with {} chunks, trailer with {}", footer.chunks.len(), trailer.chunks);
            return Err(malformed("PACK-1", what));
        }
        Ok(Self { path: path.to_owned(), keys, trailer, footer, id_key })
    }

    /// Checks that the padding is the stream that it must be (PACK-1).
    pub fn check_padding(&self, file: &(dyn Handle + '_)) -> Result<(), Fault> {
        let mut at = self.trailer.footer_at + u64::from(self.trailer.footer_bytes);
        let end = self.trailer.file_bytes - TRAILER_BYTES;
        let mut stream = blake3::Hasher::new_keyed(&self.keys.padding_key).finalize_xof();
        let mut have = [0u8; 16 * 1024];
        let mut want = [0u8; 16 * 1024];
        while at < end {
            let n = usize::try_from(end - at).map_or(have.len(), |left| left.min(have.len()));
            read_exact(file, &self.path, at, &mut have[..n])?;
            stream.fill(&mut want[..n]);
            if have[..n] != want[..n] {
                return Err(malformed("PACK-1", "its padding is not as it was written"));
            }
            at += n as u64;
        }
        Ok(())
    }

    /// Whether the length is one that a writer chooses (PACK-8). Nothing depends on it when reading.
    pub fn length_is_padded(&self) -> bool {
        let content = self.trailer.footer_at + u64::from(self.trailer.footer_bytes) + TRAILER_BYTES;
        let len = self.trailer.file_bytes;
        len.is_multiple_of(4096) && len >= padme(content).min(PACK_BYTES_MAX)
    }

    /// Reads chunk `index`, checks every frame of it and its id (PACK-4, PACK-5).
    pub fn read_chunk(
        &self,
        file: &(dyn Handle + '_),
        index: usize,
        unzip: &mut Unzip,
    ) -> Result<Zeroizing<Vec<u8>>, Fault> {
        let Some(chunk) = self.footer.chunks.get(index) else {
            return Err(fault(Class::Missing, "", "no such chunk in the pack"));
        };
        let blocks = self
            .footer
            .blocks
            .get(chunk.first_block as usize..(chunk.first_block + chunk.blocks()) as usize)
            .ok_or_else(|| malformed("PACK-2", "blocks outside of the footer"))?;
        let stored: u64 = blocks.iter().map(|&b| u64::from(body_of(b)) + TAG_BYTES).sum();
        let mut sealed = vec![0u8; stored as usize];
        read_exact(file, &self.path, u64::from(chunk.offset), &mut sealed)?;

        // The frames are read already, and none may be longer than its block, so this much is justified.
        let mut plain = Zeroizing::new(Vec::with_capacity(chunk.bytes as usize));
        let mut rest = &sealed[..];
        for (n, &block) in (0u32..).zip(blocks) {
            let (frame, tail) = rest.split_at((u64::from(body_of(block)) + TAG_BYTES) as usize);
            rest = tail;
            let number = u64::from(chunk.first_frame) + u64::from(n);
            let block_bytes = chunk.block_bytes(n);
            let info = FrameInfo {
                number,
                id: chunk.id,
                block: n,
                last: n + 1 == chunk.blocks(),
                codec: codec_of(block),
                block_bytes,
            };
            let body = self
                .keys
                .open_frame(&info, frame)
                .ok_or_else(|| not_authentic(format!("frame {number} is damaged")))?;
            let at = plain.len();
            plain.resize(at + block_bytes as usize, 0);
            unzip.block(codec_of(block), &body, &mut plain[at..])?;
        }
        if kh(&self.id_key, &plain) != chunk.id {
            return Err(damaged("PACK-5", "the chunk's content does not have the chunk's id"));
        }
        Ok(plain)
    }
}

/// Decompresses blocks; holds the state that is worth reusing.
#[derive(Default)]
pub struct Unzip {
    zstd: Option<zstd::bulk::Decompressor<'static>>,
}

impl Unzip {
    /// Decodes one body to exactly the bytes of `out` (PACK-4).
    pub fn block(&mut self, codec: u8, body: &[u8], out: &mut [u8]) -> Result<(), Fault> {
        match codec {
            0 if body.len() == out.len() => {
                out.copy_from_slice(body);
                Ok(())
            }
            0 => Err(malformed("PACK-4", "raw block of another length")),
            1 => match lz4_flex::block::decompress_into(body, out) {
                Ok(n) if n == out.len() => Ok(()),
                Ok(n) => Err(malformed("PACK-4", format!("LZ4 block of {n} and not {} bytes", out.len()))),
                Err(e) => Err(malformed("PACK-4", format!("LZ4 block: {e}"))),
            },
            2 => {
                // More frames than one, or a skippable one, would decode as well: the format has no such thing.
                let one = zstd::zstd_safe::find_frame_compressed_size(body).is_ok_and(|n| n == body.len());
                if !one || !body.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
                    return Err(malformed("PACK-4", "not one zstd frame"));
                }
                if self.zstd.is_none() {
                    let made = zstd::bulk::Decompressor::new();
                    self.zstd = Some(made.map_err(|e| unreadable("starting zstd", &e))?);
                }
                let Some(zstd) = &mut self.zstd else {
                    return Err(malformed("PACK-4", "zstd is not there"));
                };
                match zstd.decompress_to_buffer(body, out) {
                    Ok(n) if n == out.len() => Ok(()),
                    Ok(n) => {
                        Err(malformed("PACK-4", format!("zstd frame of {n} and not {} bytes", out.len())))
                    }
                    Err(e) => Err(malformed("PACK-4", format!("zstd frame: {e}"))),
                }
            }
            _ => Err(malformed("PACK-4", format!("codec {codec}"))),
        }
    }
}

/// The name that a pack with these bytes must have.
pub fn name_of(bytes: &[u8]) -> Id {
    h(bytes)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn record(id: u8, offset: u32, frame: u32, bytes: u32, blocks: &[u32]) -> Vec<u8> {
        let mut out = vec![id; 32];
        for n in [offset, frame, bytes].iter().chain(blocks) {
            out.extend_from_slice(&n.to_le_bytes());
        }
        out
    }

    fn footer(records: &[Vec<u8>]) -> Vec<u8> {
        let mut out = (records.len() as u32).to_le_bytes().to_vec();
        out.extend(records.concat());
        out
    }

    fn rule(plain: &[u8], at: u64) -> &'static str {
        parse_footer(plain, at).map_or_else(|f| f.rule, |_| "ok")
    }

    #[test]
    fn footers_are_contiguous() {
        let good = footer(&[record(1, 1168, 0, 10, &[10]), record(2, 1194, 1, 131_073, &[1 << 30 | 50, 1])]);
        assert_eq!(rule(&good, 1194 + 66 + 17), "ok");
        assert_eq!(rule(&good, 1194 + 66 + 18), "PACK-2");
        assert_eq!(rule(&[&good[..], &[0]].concat(), 1277), "GEN-2");
        assert_eq!(rule(&good[..good.len() - 1], 1277), "GEN-3");
        assert_eq!(rule(&footer(&[record(1, 1169, 0, 10, &[10])]), 1195), "PACK-2");
        assert_eq!(rule(&footer(&[]), 1168), "ok");
    }

    #[test]
    fn bodies_and_frames_keep_to_their_limits() {
        assert_eq!(rule(&footer(&[record(1, 1168, 0, 0, &[0])]), 1184), "PACK-4");
        assert_eq!(rule(&footer(&[record(1, 1168, 0, CHUNK_BYTES_MAX + 1, &[9])]), 1184), "PACK-4");
        assert_eq!(rule(&footer(&[record(1, 1168, 0, 10, &[9])]), 1193), "PACK-4");
        assert_eq!(rule(&footer(&[record(1, 1168, 0, 10, &[1 << 30 | 11])]), 1195), "PACK-4");
        assert_eq!(rule(&footer(&[record(1, 1168, 0, 10, &[3 << 30 | 5])]), 1189), "PACK-4");
        let twice = footer(&[record(1, 1168, 7, 10, &[10]), record(2, 1194, 7, 10, &[10])]);
        assert_eq!(rule(&twice, 1220), "PACK-3");
        let overlap = footer(&[record(1, 1168, 8, 10, &[10]), record(2, 1194, 7, 131_073, &[2 << 30, 1])]);
        assert_eq!(rule(&overlap, 1194 + 16 + 17), "PACK-3");
        let high = footer(&[record(1, 1168, u32::MAX, 10, &[10])]);
        assert_eq!(rule(&high, 1194), "ok");
        assert_eq!(rule(&u32::MAX.to_le_bytes(), 1168), "GEN-3");
    }

    #[test]
    fn trailers_point_into_the_file() {
        let plain = |f: u64, l: u32, len: u64| {
            [&f.to_le_bytes()[..], &l.to_le_bytes(), &1u32.to_le_bytes(), &len.to_le_bytes()].concat()
        };
        assert!(parse_trailer(&plain(1168, 100, 4096)).is_ok());
        assert!(parse_trailer(&plain(1167, 100, 4096)).is_err());
        assert!(parse_trailer(&plain(u64::MAX, 100, 4096)).is_err());
        assert!(parse_trailer(&plain(1168, 4096 - 1168 - 63, 4096)).is_err());
        assert_eq!(parse_trailer(&plain(1168, 100, PACK_BYTES_MAX + 1)).unwrap_err().outcome(), "length");
    }

    #[test]
    fn blocks_decode_to_exactly_their_length() {
        let mut unzip = Unzip::default();
        let text = b"strongroom strongroom strongroom strongroom";
        let frame = zstd::bulk::compress(text, 3).unwrap();
        let mut out = vec![0; text.len()];
        unzip.block(2, &frame, &mut out).unwrap();
        assert_eq!(out, text);
        for len in [text.len() - 1, text.len() + 1] {
            assert!(unzip.block(2, &frame, &mut vec![0; len]).is_err());
        }
        let empty = zstd::bulk::compress(b"", 3).unwrap();
        assert!(unzip.block(2, &[&frame[..], &empty[..]].concat(), &mut out).is_err());
        let skippable = [0x50, 0x2a, 0x4d, 0x18, 1, 0, 0, 0, 9];
        assert!(unzip.block(2, &[&skippable[..], &frame[..]].concat(), &mut out).is_err());
        // One literal run of 5 bytes.
        let lz4 = [0x50, b'h', b'e', b'l', b'l', b'o'];
        unzip.block(1, &lz4, &mut out[..5]).unwrap();
        assert_eq!(&out[..5], b"hello");
        assert!(unzip.block(1, &lz4, &mut out[..6]).is_err());
        assert!(unzip.block(1, &lz4, &mut out[..4]).is_err());
        assert!(unzip.block(0, b"abc", &mut out[..2]).is_err());
        assert!(unzip.block(3, b"abc", &mut out[..3]).is_err());
    }

    #[test]
    fn padme_values() {
        assert_eq!([1, 2, 9, 100, 1_000_000].map(padme), [1, 2, 10, 104, 1_015_808]);
    }
}
