//! Bodies of the fuzz targets in `fuzz/`. Each takes hostile bytes and panics if a decoder accepts what its
//! encoder would not write. They are public functions, so that ordinary tests drive them too, with mutated
//! vectors.

use super::chain::{self, ChainFile, Origin, PublicPart, SealedPart};
use super::header::{self, Header};
use super::pack::{BlockDesc, Footer, PACK_HEADER_LEN, PackHeader, Trailer};
use super::tree::TreeObject;

/// Returns the bytes of a golden vector without the text lines before them, and anything else as it is. So
/// the vectors are seeds for the targets as they are.
#[must_use]
pub fn vector_body(data: &[u8]) -> &[u8] {
    if !data.starts_with(b"comment: ") {
        return data;
    }
    data.windows(2).position(|pair| pair == b"\n\n").map_or(data, |at| &data[at + 2..])
}

/// The vault header: a sound copy encodes to itself. The input is also tried under a right checksum, with and without its own end, or no mutation would get past
/// it.
pub fn fuzz_header(data: &[u8]) {
    let members = data.get(..data.len().saturating_sub(header::TAIL_LEN)).unwrap_or(data);
    check_header(data);
    check_header(&header::close(data.to_vec(), &[0; 32]));
    check_header(&header::close(members.to_vec(), &[0; 32]));
}

fn check_header(file: &[u8]) {
    if let Ok(parsed) = Header::parse(file) {
        let encoded = parsed.header.encode(|input| {
            assert_eq!(input, parsed.mac_input);
            parsed.mac
        });
        assert_eq!(encoded, file);
        for slot in &parsed.header.slots {
            assert!(slot.kdf.check().is_ok());
            assert!(!parsed.header.slot_aad(slot).is_empty());
        }
    }
}

/// The clear header of a pack.
pub fn fuzz_pack_header(data: &[u8]) {
    if let Ok(header) = PackHeader::parse(data) {
        assert_eq!(header.encode(), data);
    }
}

/// The plaintext of a footer. The first eight bytes of the input say where the footer stands; a footer that
/// is good anywhere is also tried where its last chunk ends.
pub fn fuzz_footer(data: &[u8]) {
    let Some((at, footer)) = data.split_first_chunk::<8>() else { return };
    let check = |offset: u64, bytes: &[u8]| {
        if let Ok(footer) = Footer::parse(bytes, offset) {
            assert_eq!(footer.encode(), bytes);
            let end = footer.chunks.last().map_or(PACK_HEADER_LEN as u64, super::pack::ChunkDesc::end);
            assert_eq!(end, offset);
        }
    };
    check(u64::from_le_bytes(*at), footer);
    check(PACK_HEADER_LEN as u64, data);
    // A footer of one chunk and one block ends where that block ends.
    let block = data.get(48..52).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes);
    if let Some(Ok(desc)) = block.map(BlockDesc::from_u32) {
        check(PACK_HEADER_LEN as u64 + u64::from(desc.body_len) + 16, data);
    }
}

/// The plaintext of a trailer.
pub fn fuzz_trailer(data: &[u8]) {
    if let Ok(trailer) = Trailer::parse(data) {
        assert_eq!(trailer.encode()[..], *data);
        assert!(trailer.padding_offset() + trailer.padding_len() < trailer.file_len);
        assert!(trailer.check_file_len(trailer.file_len).is_ok());
    }
}

/// Tree objects.
pub fn fuzz_tree(data: &[u8]) {
    if let Ok(object) = TreeObject::parse(data) {
        assert_eq!(object.encode().as_deref(), Ok(data));
        assert_eq!(object.level() == 0, matches!(object, TreeObject::DirLeaf(_) | TreeObject::ExtentLeaf(_)));
    }
}

/// Chain files, and their public part alone.
pub fn fuzz_chain(data: &[u8]) {
    if let Ok((file, _)) = ChainFile::parse(data) {
        assert_eq!(file.encode().as_deref(), Ok(data));
        let name = chain::name(file.public.seq, &chain::id_of(data));
        assert_eq!(chain::parse_name(&name), Some((file.public.seq, chain::id_of(data))));
    }
    if let Ok(part) = PublicPart::parse(data) {
        assert_eq!(part.encode().as_deref(), Ok(data));
    }
}

/// The plaintext of a chain file's sealed part, for snapshots and for removals.
pub fn fuzz_sealed_part(data: &[u8]) {
    for origin in [Origin::Removal, Origin::WorkingTree] {
        if let Ok(part) = SealedPart::parse(data, origin) {
            assert_eq!(part.encode().as_deref(), Ok(data));
            assert_eq!(part.root.is_none(), origin == Origin::Removal);
        }
    }
}
