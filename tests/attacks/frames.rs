//! P3: frames, footers and headers moved within and between packs, packs made with the public key alone, and both under
//! names that fit their bytes.

use std::ops::Range;
use std::sync::Arc;

use strongroom::crypto::{PackKey, VaultKeys};
use strongroom::env::TestEnv;
use strongroom::format::chain::{id_of, name as chain_name, parse_name};
use strongroom::format::pack::{block_count, block_plain_len, pack_path, padded_len, parse_pack_path};
use strongroom::format::{
    BlockDesc, ChunkDesc, Codec, Footer, PACK_HEADER_LEN, PackHeader, PackKind, PackName, TRAILER_LEN,
    Trailer,
};

use super::edits::{Attack, Edit};
use super::target::Target;
use crate::whole::rng::Rng;

/// A closed pack, opened.
pub struct Opened {
    pub path: String,
    pub bytes: Arc<Vec<u8>>,
    pub header: PackHeader,
    pub footer: Footer,
    pub trailer: Trailer,
}

/// Opens a pack with the vault's keys, as a test may. `None`: it is not closed.
pub fn open_pack(keys: &VaultKeys, path: &str, bytes: &Arc<Vec<u8>>) -> Option<Opened> {
    let header = PackHeader::parse(bytes.get(..PACK_HEADER_LEN)?).ok()?;
    let key = keys.open_pack(&header).ok()?;
    let trailer = key.open_trailer(bytes.last_chunk::<TRAILER_LEN>()?).ok()?;
    let from = trailer.footer_offset as usize;
    let footer = key.open_footer(bytes.get(from..from + trailer.footer_len as usize)?).ok()?;
    let footer = Footer::parse(&footer, trailer.footer_offset).ok()?;
    Some(Opened { path: path.to_string(), bytes: Arc::clone(bytes), header, footer, trailer })
}

impl Opened {
    /// Frame numbers and where the frames stand.
    pub fn frames(&self) -> Vec<(u64, Range<usize>)> {
        let mut out = Vec::new();
        for chunk in &self.footer.chunks {
            let mut at = chunk.offset as usize;
            for (n, block) in chunk.blocks.iter().enumerate() {
                let len = block.body_len as usize + 16;
                out.push((u64::from(chunk.first_frame) + n as u64, at..at + len));
                at += len;
            }
        }
        out
    }

    /// The pack with its frames in another order, each where another one stood.
    fn turned(&self) -> Vec<u8> {
        let mut bytes = self.bytes.to_vec();
        let frames = self.frames();
        let (first, last) = (&frames[0].1, &frames[frames.len() - 1].1);
        let area = self.bytes[first.start..last.end].to_vec();
        let by = frames[0].1.len();
        let mut turned = area[by..].to_vec();
        turned.extend_from_slice(&area[..by]);
        bytes[first.start..last.end].copy_from_slice(&turned);
        bytes
    }

    /// The pack with frame `n` over frame `to`, as far as it fits.
    fn copied(&self, n: usize, to: usize) -> Vec<u8> {
        let mut bytes = self.bytes.to_vec();
        let frames = self.frames();
        over(&mut bytes, &frames[to].1, &self.bytes[frames[n].1.clone()]);
        bytes
    }
}

fn over(bytes: &mut [u8], at: &Range<usize>, with: &[u8]) {
    let len = at.len().min(with.len());
    bytes[at.start..at.start + len].copy_from_slice(&with[..len]);
}

/// New bytes for a pack: in its place, under the name that fits them, and in the chain file as well.
fn placed(target: &Target, what: &str, path: &str, bytes: Vec<u8>) -> Vec<Attack> {
    let bytes = Arc::new(bytes);
    let old = parse_pack_path(path).expect("a pack");
    let new = PackName(*blake3::hash(&bytes).as_bytes());
    assert_ne!(old, new, "{what} changes something");
    let moved = vec![(path.to_string(), Edit::Remove), (pack_path(&new), Edit::Put(Arc::clone(&bytes)))];
    let mut out = vec![
        Attack::new(format!("moved frames: {what}"), vec![(path.to_string(), Edit::Put(Arc::clone(&bytes)))]),
        Attack::new(format!("moved frames: {what}, named by its bytes"), moved.clone()),
    ];
    // The public part of a chain file names packs in the clear; what a meddler can't do is sign it again.
    for chain_path in &target.chain {
        let mut chain = target.files[chain_path].to_vec();
        let Some(at) = chain.windows(32).position(|w| w == old.as_bytes()) else { continue };
        chain[at..at + 32].copy_from_slice(new.as_bytes());
        let (seq, _) = parse_name(&chain_path["snapshots/".len()..]).expect("a chain file");
        let mut edits = moved.clone();
        edits.push((chain_path.clone(), Edit::Remove));
        edits.push((format!("snapshots/{}", chain_name(seq, &id_of(&chain))), Edit::Put(Arc::new(chain))));
        out.push(Attack::new(format!("moved frames: {what}, named in the chain"), edits));
        break;
    }
    out
}

/// Somebody who knows the public key makes a pack that lists the same chunks, with other content.
fn forged(keys: &VaultKeys, pack: &Opened, seed: u64) -> Vec<u8> {
    let (env, mut rng) = (TestEnv::new(seed), Rng(seed));
    let (header, key): (PackHeader, PackKey) = keys.new_pack(&env, pack.header.kind).expect("a pack key");
    let mut out = header.encode();
    let mut chunks = Vec::new();
    let mut frame = 0;
    for chunk in &pack.footer.chunks {
        let offset = out.len() as u32;
        let count = block_count(chunk.plain_len);
        let mut blocks = Vec::new();
        for n in 0..count {
            let len = block_plain_len(chunk.plain_len, n);
            let (start, last) = (out.len(), n + 1 == count);
            out.extend_from_slice(&rng.bytes(len as usize));
            key.seal_frame(u64::from(frame + n), &chunk.id, n, last, Codec::Raw, len, &mut out, start)
                .expect("sealed");
            blocks.push(BlockDesc { codec: Codec::Raw, body_len: len });
        }
        chunks.push(ChunkDesc {
            id: chunk.id,
            offset,
            first_frame: frame,
            plain_len: chunk.plain_len,
            blocks,
        });
        frame += count;
    }
    let footer_offset = out.len() as u64;
    let chunk_count = chunks.len() as u32;
    let footer = key.seal_footer(&env, &Footer { chunks }.encode());
    let file_len = padded_len(footer_offset + footer.len() as u64 + TRAILER_LEN as u64);
    let trailer = Trailer { footer_offset, footer_len: footer.len() as u32, chunk_count, file_len };
    out.extend_from_slice(&footer);
    let padding = file_len as usize - out.len() - TRAILER_LEN;
    out.extend_from_slice(&key.padding(padding));
    out.extend_from_slice(&key.seal_trailer(&env, &trailer));
    out
}

/// All attacks of this kind on packs that snapshots need.
pub fn moved(target: &Target, seed: u64) -> Vec<Attack> {
    let keys = target.unlock().keys;
    let mut out = Vec::new();
    for kind in [PackKind::Data, PackKind::Tree] {
        let packs: Vec<Opened> = target
            .needed
            .iter()
            .map(|path| open_pack(&keys, path, &target.files[path]).expect("a closed pack"))
            .filter(|pack| pack.header.kind == kind && pack.frames().len() > 2)
            .collect();
        let [a, b, ..] = &packs[..] else { panic!("at least two packs of {kind:?} with some frames") };
        let frames = a.frames();
        let mut put = |what: &str, bytes: Vec<u8>| out.extend(placed(target, what, &a.path, bytes));
        put("turned round", a.turned());
        put("the first one again", a.copied(0, 1));
        put("the last one first", a.copied(frames.len() - 1, 0));

        let mut bytes = a.bytes.to_vec();
        over(&mut bytes, &frames[0].1, &b.bytes[b.frames()[0].1.clone()]);
        put("one of another pack", bytes);
        let mut bytes = a.bytes.to_vec();
        bytes[..PACK_HEADER_LEN].copy_from_slice(&b.bytes[..PACK_HEADER_LEN]);
        put("under the header of another pack", bytes);
        let mut bytes = a.bytes[..a.trailer.footer_offset as usize].to_vec();
        bytes.extend_from_slice(&b.bytes[b.trailer.footer_offset as usize..]);
        put("before the end of another pack", bytes);
        let mut bytes = a.bytes[..PACK_HEADER_LEN].to_vec();
        bytes.extend_from_slice(&b.bytes[PACK_HEADER_LEN..]);
        put("all of another pack's", bytes);

        let forged = forged(&keys, a, seed);
        let stray = pack_path(&PackName(*blake3::hash(&forged).as_bytes()));
        let beside = vec![(stray, Edit::Put(Arc::new(forged.clone())))];
        out.push(Attack::new("moved frames: a forged pack beside the true one", beside));
        out.extend(placed(target, "a forged pack", &a.path, forged));
    }
    out
}
