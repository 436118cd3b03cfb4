//! Vectors of packs: header, footer, trailer, frames, and whole files.

use std::error::Error;

use strongroom::crypto::{PackKey, VaultKeys};
use strongroom::env::{Env, TestEnv};
use strongroom::format::{
    BlockDesc, ChunkDesc, ChunkId, Cipher, Codec, Footer, PackHeader, PackKind, PackUid, Trailer, TreeObject,
    padded_len,
};

use crate::{Out, Outcome, VAULT, chunk, vault_keys, vault_params};

fn a_pack_header() -> PackHeader {
    PackHeader {
        kind: PackKind::Data,
        cipher: Cipher::ChaCha20Poly1305,
        vault_id: VAULT,
        uid: PackUid([0x75; 16]),
        kem_ciphertext: (0..1120u32).map(|i| i as u8).collect(),
    }
}

pub(crate) fn pack_headers(out: &Out) -> Outcome {
    let good = a_pack_header().encode();
    let tree = PackHeader { kind: PackKind::Tree, cipher: Cipher::Aes256Gcm, ..a_pack_header() }.encode();
    out.put("pack-header-ok-data", "ok", "kind 1, cipher 1", &[], &good)?;
    out.put("pack-header-ok-tree", "ok", "kind 2, cipher 2", &[], &tree)?;
    for (name, comment, at, value) in [
        ("magic", "another magic", 0, b's'),
        ("magic-version", "the end of the magic", 7, 2),
        ("kind-0", "PACK-6: unknown kind", 8, 0),
        ("kind-3", "PACK-6: unknown kind", 8, 3),
        ("cipher-0", "unknown cipher", 9, 0),
        ("cipher-3", "unknown cipher", 9, 3),
        ("reserved-first", "GEN-4", 10, 1),
        ("reserved-last", "GEN-4", 15, 0x80),
    ] {
        let mut bad = good.clone();
        bad[at] = value;
        out.put(&format!("pack-header-{name}"), "malformed", comment, &[], &bad)?;
    }
    out.put("pack-header-short", "malformed", "one byte missing", &[], &good[..1167])?;
    out.put("pack-header-long", "malformed", "GEN-2: one byte more", &[], &[&good[..], &[0]].concat())
}

fn block(codec: Codec, body_len: u32) -> BlockDesc {
    BlockDesc { codec, body_len }
}

fn a_footer() -> Footer {
    let desc = |n, offset, first_frame, plain_len, blocks| ChunkDesc {
        id: chunk(n),
        offset,
        first_frame,
        plain_len,
        blocks,
    };
    Footer {
        chunks: vec![
            desc(1, 1168, 0, 1000, vec![block(Codec::Lz4, 500)]),
            desc(2, 1684, 1, 131_073, vec![block(Codec::Zstd, 131_072), block(Codec::Raw, 1)]),
            desc(3, 132_789, 3, 1, vec![block(Codec::Raw, 1)]),
        ],
    }
}

const FOOTER_OFFSET: u64 = 132_806;

pub(crate) fn footers(out: &Out) -> Outcome {
    let put = |name: &str, expect: &str, comment: &str, offset: u64, body: &[u8]| {
        out.put(&format!("footer-{name}"), expect, comment, &[("footer-offset", offset.to_string())], body)
    };
    let good = a_footer().encode();
    put("ok", "ok", "three chunks, four blocks", FOOTER_OFFSET, &good)?;
    put("ok-empty", "ok", "no chunk", 1168, &Footer::default().encode())?;
    let gapless_frames = |footer: &mut Footer| footer.chunks[0].first_frame = 100;
    let mut skipped = a_footer();
    gapless_frames(&mut skipped);
    put("ok-frames-out-of-order", "ok", "PACK-3: numbers need not ascend", FOOTER_OFFSET, &skipped.encode())?;

    let changed = |change: fn(&mut Footer)| {
        let mut footer = a_footer();
        change(&mut footer);
        footer.encode()
    };
    for (name, comment, body) in [
        ("first-offset", "PACK-2: the first chunk is not at 1168", changed(|f| f.chunks[0].offset = 1169)),
        ("gap", "PACK-2: a gap between chunks", changed(|f| f.chunks[1].offset += 1)),
        ("overlap", "PACK-2: chunks overlap", changed(|f| f.chunks[1].offset -= 1)),
        ("missing-chunk", "PACK-2: the last chunk ends before the footer", changed(|f| f.chunks.truncate(2))),
        ("swapped", "PACK-2: not in file order", changed(|f| f.chunks.swap(0, 1))),
        ("frame-twice", "PACK-3: a frame number is used twice", changed(|f| f.chunks[2].first_frame = 2)),
        ("frame-range", "PACK-3: ranges overlap", changed(|f| f.chunks[0].first_frame = 2)),
        (
            "raw-short",
            "PACK-4: codec 0 shorter than its block",
            changed(|f| f.chunks[0].blocks[0].codec = Codec::Raw),
        ),
        ("lz4-long", "PACK-4: a body longer than its block", changed(|f| f.chunks[0].plain_len = 499)),
    ] {
        put(name, "malformed", comment, FOOTER_OFFSET, &body)?;
    }
    let patched = |at: usize, bytes: [u8; 4]| {
        let mut bad = good.clone();
        bad[at..at + 4].copy_from_slice(&bytes);
        bad
    };
    put(
        "codec-3",
        "malformed",
        "PACK-4: codec 3",
        FOOTER_OFFSET,
        &patched(48, (3u32 << 30 | 500).to_le_bytes()),
    )?;
    put("plain-len-0", "malformed", "a chunk has at least one byte", FOOTER_OFFSET, &patched(44, [0; 4]))?;
    let above = ((8u32 << 20) + 1).to_le_bytes();
    put("plain-len-big", "malformed", "a chunk has at most 8 MiB", FOOTER_OFFSET, &patched(44, above))?;
    put(
        "count-huge",
        "malformed",
        "GEN-3: a count that the input can't hold",
        FOOTER_OFFSET,
        &patched(0, [0xff; 4]),
    )?;
    put("short", "malformed", "one byte missing", FOOTER_OFFSET, &good[..good.len() - 1])?;
    put("long", "malformed", "GEN-2: one byte more", FOOTER_OFFSET, &[&good[..], &[0]].concat())
}

pub(crate) fn trailers(out: &Out) -> Outcome {
    let good = Trailer { footer_offset: 5000, footer_len: 100, chunk_count: 1, file_len: 8192 };
    let put = |name: &str, expect: &str, comment: &str, trailer: Trailer| {
        out.put(&format!("trailer-{name}"), expect, comment, &[], &trailer.encode())
    };
    put("ok", "ok", "padding of 3,028 bytes", good)?;
    put("ok-no-padding", "ok", "the footer ends at the trailer", Trailer { file_len: 5164, ..good })?;
    put("footer-in-header", "malformed", "PACK-1: F below 1168", Trailer { footer_offset: 1167, ..good })?;
    put(
        "footer-in-trailer",
        "malformed",
        "PACK-1: F + L + 64 above the length",
        Trailer { file_len: 5163, ..good },
    )?;
    put(
        "overflow",
        "malformed",
        "PACK-1: F + L overflows",
        Trailer { footer_offset: u64::MAX - 50, ..good },
    )?;
    put("too-long", "length", "PACK-1: a pack above 1 GiB", Trailer { file_len: (1 << 30) + 1, ..good })?;
    out.put("trailer-short", "malformed", "one byte missing", &[], &good.encode()[..23])?;
    out.put("trailer-long", "malformed", "GEN-2: one byte more", &[], &[&good.encode()[..], &[0]].concat())
}

pub(crate) fn frames(out: &Out) -> Outcome {
    let plain = b"The bytes of one block.";
    for cipher in [Cipher::ChaCha20Poly1305, Cipher::Aes256Gcm] {
        let (header, key) = vault_keys(cipher)?.new_pack(&TestEnv::new(10), PackKind::Data)?;
        let mut frame = plain.to_vec();
        key.seal_frame(5, &chunk(7), 2, true, Codec::Lz4, 100, &mut frame, 0)?;
        let header = header.encode();
        let put = |name: &str,
                   expect: &str,
                   comment: &str,
                   change: Option<(&'static str, String)>,
                   frame: &[u8]| {
            let mut keys = vault_params(cipher);
            for (key, value) in
                [("frame", "5"), ("block", "2"), ("last", "1"), ("codec", "1"), ("plain-len", "100")]
            {
                keys.push((key, value.to_owned()));
            }
            keys.push(("id", chunk(7).to_hex()));
            if let Some((key, value)) = change {
                keys.retain(|pair| pair.0 != key);
                keys.push((key, value));
            }
            if expect == "ok" {
                keys.push(("opened", blake3::hash(plain).to_hex().to_string()));
            }
            let suffix = if cipher == Cipher::Aes256Gcm { "-aes" } else { "" };
            out.put(&format!("frame-{name}{suffix}"), expect, comment, &keys, &[&header[..], frame].concat())
        };
        put("ok", "ok", "a frame at its place", None, &frame)?;
        for (name, key, value) in [
            ("number", "frame", "6".to_owned()),
            ("number-high", "frame", (5u64 + (1 << 32)).to_string()),
            ("chunk", "id", chunk(8).to_hex()),
            ("block", "block", "1".to_owned()),
            ("last", "last", "0".to_owned()),
            ("codec", "codec", "2".to_owned()),
            ("plain-len", "plain-len", "101".to_owned()),
        ] {
            put(name, "mac", "a frame is bound to its place", Some((key, value)), &frame)?;
        }
        put("short", "mac", "one byte missing", None, &frame[..frame.len() - 1])?;
        put("tag-only", "mac", "less than a tag", None, &frame[..15])?;
        let mut flipped = frame.clone();
        flipped[3] ^= 8;
        put("flipped", "mac", "a flipped bit", None, &flipped)?;
    }
    Ok(())
}

/// Writes a pack step by step, right or wrong.
struct PackWriter {
    env: TestEnv,
    keys: VaultKeys,
    key: PackKey,
    kind: PackKind,
    file: Vec<u8>,
    footer: Footer,
    frame: u32,
}

impl PackWriter {
    fn new(cipher: Cipher, kind: PackKind) -> Result<Self, Box<dyn Error>> {
        let (env, keys) = (TestEnv::new(20), vault_keys(cipher)?);
        let (header, key) = keys.new_pack(&env, kind)?;
        Ok(PackWriter { env, keys, key, kind, file: header.encode(), footer: Footer::default(), frame: 0 })
    }

    /// Appends a chunk; `codecs` says how each of its blocks is stored.
    fn chunk(&mut self, plain: &[u8], codecs: &[Codec]) -> Outcome {
        let id = self.keys.chunk_id(self.kind, plain);
        self.chunk_as(id, plain, codecs)
    }

    fn chunk_as(&mut self, id: ChunkId, plain: &[u8], codecs: &[Codec]) -> Outcome {
        let mut desc = ChunkDesc {
            id,
            offset: self.file.len() as u32,
            first_frame: self.frame,
            plain_len: plain.len() as u32,
            blocks: Vec::new(),
        };
        let count = plain.len().div_ceil(131_072);
        for (i, (part, codec)) in plain.chunks(131_072).zip(codecs).enumerate() {
            let body = match codec {
                Codec::Raw => part.to_vec(),
                Codec::Lz4 => lz4_flex::block::compress(part),
                Codec::Zstd => zstd::bulk::compress(part, 3)?,
            };
            desc.blocks.push(block(*codec, body.len() as u32));
            self.seal(&id, i as u32, i + 1 == count, *codec, part.len() as u32, &body)?;
        }
        self.footer.chunks.push(desc);
        Ok(())
    }

    fn seal(
        &mut self,
        id: &ChunkId,
        block: u32,
        last: bool,
        codec: Codec,
        plain_len: u32,
        body: &[u8],
    ) -> Outcome {
        let start = self.file.len();
        self.file.extend_from_slice(body);
        self.key.seal_frame(
            u64::from(self.frame),
            id,
            block,
            last,
            codec,
            plain_len,
            &mut self.file,
            start,
        )?;
        self.frame += 1;
        Ok(())
    }

    /// Appends footer, padding and trailer; `change` may falsify the trailer.
    fn finish(mut self, change: impl FnOnce(&mut Trailer)) -> Vec<u8> {
        let footer_offset = self.file.len() as u64;
        let footer = self.key.seal_footer(&self.env, &self.footer.encode());
        self.file.extend_from_slice(&footer);
        let file_len = padded_len(self.file.len() as u64 + 64);
        let padding = self.key.padding(file_len as usize - 64 - self.file.len());
        self.file.extend_from_slice(&padding);
        let chunk_count = self.footer.chunks.len() as u32;
        let mut trailer = Trailer { footer_offset, footer_len: footer.len() as u32, chunk_count, file_len };
        change(&mut trailer);
        let trailer = self.key.seal_trailer(&self.env, &trailer);
        self.file.extend_from_slice(&trailer);
        self.file
    }
}

/// Bytes that compress to about half.
fn text(len: usize) -> Vec<u8> {
    let mut noise = vec![0; len / 8];
    TestEnv::new(30).random(&mut noise);
    noise.iter().flat_map(|b| [*b, b'a', b'b', b'c', *b, b'a', b'b', b'c']).take(len).collect()
}

pub(crate) fn packs(out: &Out) -> Outcome {
    const CHACHA: Cipher = Cipher::ChaCha20Poly1305;
    let put = |name: &str, expect: &str, comment: &str, file: &[u8]| {
        out.put(&format!("pack-file-{name}"), expect, comment, &vault_params(CHACHA), file)
    };
    let small = || -> Result<PackWriter, Box<dyn Error>> {
        let mut writer = PackWriter::new(CHACHA, PackKind::Data)?;
        writer.chunk(b"a raw chunk", &[Codec::Raw])?;
        writer.chunk(&text(800), &[Codec::Lz4])?;
        writer.chunk(&text(400), &[Codec::Zstd])?;
        Ok(writer)
    };
    let good = small()?.finish(|_| {});
    put("ok", "ok", "a raw, an LZ4 and a zstd chunk", &good)?;
    put("ok-empty", "ok", "no chunk at all", &PackWriter::new(CHACHA, PackKind::Data)?.finish(|_| {}))?;
    let mut blocks = PackWriter::new(CHACHA, PackKind::Data)?;
    blocks.chunk(&vec![0x30; 131_072 + 5], &[Codec::Zstd, Codec::Raw])?;
    blocks.chunk(&vec![0x31; 131_072], &[Codec::Lz4])?;
    put("ok-blocks", "ok", "a chunk of two blocks, and one of exactly one", &blocks.finish(|_| {}))?;
    let mut tree = PackWriter::new(Cipher::Aes256Gcm, PackKind::Tree)?;
    tree.chunk(&TreeObject::DirLeaf(Vec::new()).encode()?, &[Codec::Raw])?;
    let tree = tree.finish(|_| {});
    out.put(
        "pack-file-ok-aes-tree",
        "ok",
        "a tree pack of the other cipher",
        &vault_params(Cipher::Aes256Gcm),
        &tree,
    )?;

    let flipped = |at: usize| {
        let mut bad = good.clone();
        bad[at] ^= 1;
        bad
    };
    let footer_at = small()?.file.len();
    put("uid", "mac", "the header is bound to the key", &flipped(32))?;
    put("kem", "mac", "a flipped bit in the X-Wing ciphertext", &flipped(48))?;
    put("kem-x25519", "mac", "a flipped bit in its X25519 half", &flipped(1167))?;
    put("vault", "mac", "a pack of another vault", &flipped(16))?;
    put("kind", "mac", "kind changed to tree", &{
        let mut bad = good.clone();
        bad[8] = 2;
        bad
    })?;
    put("frame", "mac", "a flipped bit in a frame", &flipped(1168))?;
    put("footer", "mac", "a flipped bit in the footer", &flipped(footer_at + 30))?;
    put("trailer", "mac", "a flipped bit in the trailer", &flipped(good.len() - 1))?;
    put("cut", "mac", "the last byte is missing", &good[..good.len() - 1])?;
    put("extended", "mac", "a byte more", &[&good[..], &[0]].concat())?;
    put("padding", "malformed", "PACK-1: a flipped bit in the padding", &flipped(good.len() - 65))?;
    put("tiny", "malformed", "shorter than a pack header", &good[..100])?;
    out.put("pack-file-cipher", "mac", "not the header's cipher", &vault_params(CHACHA), &tree)?;

    let lying = small()?.finish(|t| t.file_len += 4096);
    put("length", "malformed", "PACK-1: the file length is not the trailer's", &lying)?;
    let lying = small()?.finish(|t| t.footer_offset = 1000);
    put("footer-offset", "malformed", "PACK-1: F below 1168", &lying)?;
    let lying = small()?.finish(|t| t.footer_len = 4096);
    put("footer-len", "malformed", "PACK-1: F + L + 64 above the length", &lying)?;
    let lying = small()?.finish(|t| t.footer_offset -= 1);
    put("footer-moved", "mac", "the trailer names another footer", &lying)?;
    let mut gap = small()?;
    gap.footer.chunks.remove(0);
    put("gap", "malformed", "PACK-2: a chunk that the footer does not list", &gap.finish(|_| {}))?;

    let mut wrong_id = PackWriter::new(CHACHA, PackKind::Data)?;
    wrong_id.chunk_as(chunk(1), b"not the plaintext of that id", &[Codec::Raw])?;
    put("chunk-id", "damaged", "PACK-5", &wrong_id.finish(|_| {}))?;
    let mut tree_id = PackWriter::new(CHACHA, PackKind::Data)?;
    let id = tree_id.keys.chunk_id(PackKind::Tree, b"a chunk");
    tree_id.chunk_as(id, b"a chunk", &[Codec::Raw])?;
    put("tree-id", "damaged", "PACK-5, PACK-6: a tree id in a data pack", &tree_id.finish(|_| {}))?;
    for (name, comment, codec, body) in [
        (
            "lz4-short",
            "PACK-4: LZ4 gives less than the block",
            Codec::Lz4,
            lz4_flex::block::compress(&[7; 99]),
        ),
        (
            "lz4-long",
            "PACK-4: LZ4 gives more than the block",
            Codec::Lz4,
            lz4_flex::block::compress(&[7; 1000]),
        ),
        ("lz4-noise", "PACK-4: no LZ4 block", Codec::Lz4, vec![0xff; 50]),
        (
            "zstd-short",
            "PACK-4: zstd gives less than the block",
            Codec::Zstd,
            zstd::bulk::compress(&[7; 99], 3)?,
        ),
        (
            "zstd-long",
            "PACK-4: zstd gives more than the block",
            Codec::Zstd,
            zstd::bulk::compress(&[7; 1000], 3)?,
        ),
        (
            "zstd-two-frames",
            "PACK-4: one zstd frame, not two",
            Codec::Zstd,
            [zstd::bulk::compress(&[7; 60], 3)?, zstd::bulk::compress(&[7; 40], 3)?].concat(),
        ),
        ("zstd-noise", "PACK-4: no zstd frame", Codec::Zstd, vec![0xff; 50]),
    ] {
        let mut writer = PackWriter::new(CHACHA, PackKind::Data)?;
        let id = writer.keys.chunk_id(PackKind::Data, &[7; 100]);
        let blocks = vec![block(codec, body.len() as u32)];
        writer.footer.chunks.push(ChunkDesc { id, offset: 1168, first_frame: 0, plain_len: 100, blocks });
        writer.seal(&id, 0, true, codec, 100, &body)?;
        put(name, "malformed", comment, &writer.finish(|_| {}))?;
    }
    Ok(())
}
