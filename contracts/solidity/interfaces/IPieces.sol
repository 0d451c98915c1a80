// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

/// @title Pieces: images on the ledger, split into pieces
/// @notice The meaning of Li & Kuo (2021): an image is split into pieces, each piece is stored by one transaction, pieces are
/// loaded and merged by whoever may. Four contracts implement this interface and differ in where the bytes end up:
/// PiecesCalldata (transaction input), PiecesLog (event data), PiecesCode (contract code), PiecesStorage (storage slots).
/// All four hash every byte that arrives and record the hash of each piece.
///
/// Names: an image and a study are 32-byte ids chosen by the storing source. Every id lives in the name space of the source
/// (not of its operator key), so nobody can occupy or extend another site's image. A piece has an index from 0.
///
/// Order: pieces may arrive in any order. The same piece again with the same bytes changes nothing and succeeds; with other
/// bytes it reverts. An image ends when it is sealed with its number of pieces and its Merkle root; nothing can be added then.
///
/// Root: piece hash h(i) = keccak256(bytes of piece i); leaf(i) = keccak256(h(i)), over 32 bytes; node(l, r) = keccak256(l ‖ r),
/// over 64 bytes. The tree has the shape of RFC 9162 section 2.1.1 (split at the largest power of two below n), which is the
/// same as pairing neighbours level by level and carrying an odd last node up unchanged. Leaves and nodes cannot be confused
/// because they hash inputs of different length. There is no root of an image without pieces.
///
/// Inconvenient facts:
/// - Bytes are never removed. Store ciphertext.
/// - The contract cannot tell ciphertext from nonsense, and does not know the Studies contract: `study` is only a label.
/// - A source that stores wrong bytes at an index has spoilt that image id and must take a new one.
/// - Only PiecesCode and PiecesStorage can be read by a call. For the others the bytes must be fetched from a block that some
///   node still keeps; find them by a locally kept (block, index), not by scanning.
interface IPieces {
    /// @notice One piece of a batch. `study` is the label of the image, the same in all its pieces.
    struct PieceInput {
        bytes32 study;
        bytes32 image;
        uint32 index;
        bytes data;
    }

    /// @notice One image to seal in a batch.
    struct SealInput {
        bytes32 image;
        uint32 pieces;
        bytes32 root;
    }

    /// @notice The first piece of `image` arrived.
    event ImageOpened(address indexed source, bytes32 indexed study, bytes32 indexed image);
    /// @notice Piece `index` of `image` arrived; `pieceHash` is the keccak-256 of its bytes.
    event PieceStored(address indexed source, bytes32 indexed image, uint32 indexed index, bytes32 pieceHash);
    /// @notice `image` is complete: `pieces` pieces, `size` bytes, Merkle root `root`.
    event ImageSealed(address indexed source, bytes32 indexed image, uint32 pieces, uint64 size, bytes32 root);

    /// @notice The sender does not act for an active source.
    error NotSource(address sender);
    /// @notice The zero image or study id was given.
    error ZeroId();
    /// @notice A piece holds at least one byte.
    error EmptyPiece(bytes32 image, uint32 index);
    /// @notice The index is beyond the limit for one image.
    error IndexTooHigh(uint32 index);
    /// @notice Piece `index` is stored with other bytes.
    error PieceDiffers(bytes32 image, uint32 index);
    /// @notice `image` belongs to another study.
    error StudyDiffers(bytes32 image, bytes32 study);
    /// @notice `image` is sealed.
    error AlreadySealed(bytes32 image);
    /// @notice A piece below the number of pieces is not stored.
    error PieceMissing(bytes32 image, uint32 index);
    /// @notice The number of pieces given is not the number stored.
    error CountDiffers(bytes32 image, uint32 stored, uint32 given);
    /// @notice The root given is not the root of the stored pieces.
    error RootDiffers(bytes32 image, bytes32 computed);
    /// @notice Too many pieces to seal in one transaction: call `fold` first.
    error FoldFirst(bytes32 image, uint32 folded, uint32 pieces);

    /// @notice Stores one piece.
    function storePiece(bytes32 study, bytes32 image, uint32 index, bytes calldata data) external;
    /// @notice Stores pieces of any number of images. All or none.
    function storePieces(PieceInput[] calldata batch) external;
    /// @notice Hashes the next 1,024 pieces of `image` into the root. Needed only before sealing more than 4,096 pieces.
    function fold(bytes32 image) external;
    /// @notice Ends `image`. Reverts unless exactly `pieces` pieces are stored and `root` is their root. A repeat succeeds.
    function seal(bytes32 image, uint32 pieces, bytes32 root) external;
    /// @notice Ends several images. All or none.
    function sealImages(SealInput[] calldata batch) external;

    /// @notice Number of images of `study` of `source`.
    function getImageCount(address source, bytes32 study) external view returns (uint256);
    /// @notice The images of `study` of `source`, in order of arrival.
    function imageAt(address source, bytes32 study, uint256 position) external view returns (bytes32 image);
    /// @notice Number of pieces of `image` stored so far.
    function getPiecesCount(address source, bytes32 image) external view returns (uint32);
    /// @notice Whether `source` stored any image of `study` (the paper's patient relation).
    function getPatientExists(address source, bytes32 study) external view returns (bool);
    /// @notice Whether `source` stored any piece of `image`.
    function getImageExists(address source, bytes32 image) external view returns (bool);
    /// @notice Whether piece `index` of `image` is stored.
    function getPieceExists(address source, bytes32 image, uint32 index) external view returns (bool);
    /// @notice Whether `image` is complete, that is sealed.
    function getEnd(address source, bytes32 image) external view returns (bool);
    /// @notice The keccak-256 of piece `index`; zero if it is not stored.
    function pieceHashOf(address source, bytes32 image, uint32 index) external view returns (bytes32);
    /// @notice Everything about `image`. `pieces` and `root` are zero until it is sealed.
    function getImage(address source, bytes32 image)
        external
        view
        returns (bytes32 study, uint32 stored, uint64 size, uint32 folded, uint32 pieces, bytes32 root);
    /// @notice The Sources contract that is asked who may store.
    function sources() external view returns (address);
}

/// @title Pieces that a call can read
interface IPiecesReadable is IPieces {
    /// @notice The bytes of piece `index` were not stored.
    error PieceUnknown(bytes32 image, uint32 index);

    /// @notice The bytes of piece `index`.
    function loadPiece(address source, bytes32 image, uint32 index) external view returns (bytes memory data);
}
