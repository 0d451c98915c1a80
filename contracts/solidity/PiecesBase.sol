// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {EfficientHashLib} from "solady/src/utils/EfficientHashLib.sol";
import {IPieces} from "./interfaces/IPieces.sol";
import {ISources} from "./interfaces/ISources.sol";

/// @title What the four Pieces contracts share
/// @notice See {IPieces}. A mode adds only `_keep`: where the bytes of a new piece go.
abstract contract PiecesBase is IPieces {
    /// @notice Pieces of one image at most: 2^20, or 125 GB in pieces of 120,000 bytes.
    uint32 public constant PIECES_MAX = 1 << 20;
    /// @notice Pieces folded by one call of `fold`. A power of two, so that a folded chunk is a whole subtree of the root.
    uint32 public constant CHUNK_PIECES = 1024;
    /// @notice Pieces that `seal` hashes itself at most; about 10.5 million gas.
    uint32 public constant SEAL_PIECES_MAX = 4096;

    struct Image {
        bytes32 study;
        bytes32 root;
        uint32 stored;
        uint32 folded;
        uint32 pieces;
        uint64 size;
    }

    ISources private _registry;
    mapping(bytes32 imageKey => Image) private _images;
    mapping(bytes32 imageKey => mapping(uint256 index => bytes32)) private _pieceHashes;
    mapping(bytes32 imageKey => mapping(uint256 chunk => bytes32)) private _chunkRoots;
    mapping(bytes32 studyKey => bytes32[]) private _imagesOf;

    constructor(address registry) {
        if (registry == address(0)) revert ZeroId();
        _registry = ISources(registry);
    }

    function storePiece(bytes32 study, bytes32 image, uint32 index, bytes calldata data) external {
        _store(_source(), study, image, index, data);
    }

    function storePieces(PieceInput[] calldata batch) external {
        address source = _source();
        for (uint256 i = 0; i < batch.length; ++i) {
            PieceInput calldata piece = batch[i];
            _store(source, piece.study, piece.image, piece.index, piece.data);
        }
    }

    function fold(bytes32 image) external {
        bytes32 key = _key(_source(), image);
        Image storage known = _images[key];
        if (known.pieces != 0) revert AlreadySealed(image);
        uint32 folded = known.folded;
        _chunkRoots[key][folded / CHUNK_PIECES] = _rootOf(key, image, folded, folded + CHUNK_PIECES);
        known.folded = folded + CHUNK_PIECES;
    }

    function seal(bytes32 image, uint32 pieces, bytes32 root) external {
        _seal(_source(), image, pieces, root);
    }

    function sealImages(SealInput[] calldata batch) external {
        address source = _source();
        for (uint256 i = 0; i < batch.length; ++i) {
            _seal(source, batch[i].image, batch[i].pieces, batch[i].root);
        }
    }

    function getImageCount(address source, bytes32 study) external view returns (uint256) {
        return _imagesOf[_key(source, study)].length;
    }

    function imageAt(address source, bytes32 study, uint256 position) external view returns (bytes32) {
        return _imagesOf[_key(source, study)][position];
    }

    function getPiecesCount(address source, bytes32 image) external view returns (uint32) {
        return _images[_key(source, image)].stored;
    }

    function getPatientExists(address source, bytes32 study) external view returns (bool) {
        return _imagesOf[_key(source, study)].length != 0;
    }

    function getImageExists(address source, bytes32 image) external view returns (bool) {
        return _images[_key(source, image)].stored != 0;
    }

    function getPieceExists(address source, bytes32 image, uint32 index) external view returns (bool) {
        return _pieceHashes[_key(source, image)][index] != 0;
    }

    function getEnd(address source, bytes32 image) external view returns (bool) {
        return _images[_key(source, image)].pieces != 0;
    }

    function pieceHashOf(address source, bytes32 image, uint32 index) external view returns (bytes32) {
        return _pieceHashes[_key(source, image)][index];
    }

    function getImage(address source, bytes32 image)
        external
        view
        returns (bytes32 study, uint32 stored, uint64 size, uint32 folded, uint32 pieces, bytes32 root)
    {
        Image storage known = _images[_key(source, image)];
        return (known.study, known.stored, known.size, known.folded, known.pieces, known.root);
    }

    function sources() external view returns (address) {
        return address(_registry);
    }

    /// @dev Puts the bytes of a piece that is new where this mode keeps them. Called once per (image, index).
    function _keep(bytes32 imageKey, address source, bytes32 image, uint32 index, bytes calldata data)
        internal
        virtual;

    /// @dev The name space of a source: the same id from two sources is two things.
    function _key(address source, bytes32 id) internal pure returns (bytes32) {
        return EfficientHashLib.hash(bytes32(uint256(uint160(source))), id);
    }

    function _source() private view returns (address source) {
        source = _registry.sourceOf(msg.sender);
        if (source == address(0)) revert NotSource(msg.sender);
    }

    function _store(address source, bytes32 study, bytes32 image, uint32 index, bytes calldata data) private {
        bytes32 key = _key(source, image);
        Image storage known = _images[key];
        bytes32 pieceHash = keccak256(data);
        bytes32 storedHash = _pieceHashes[key][index];
        if (storedHash != 0) {
            if (storedHash != pieceHash) revert PieceDiffers(image, index);
            if (known.study != study) revert StudyDiffers(image, study);
            return;
        }
        _checkNew(known, study, image, index, data.length);
        bool first = known.stored == 0;
        if (first) {
            known.study = study;
            _imagesOf[_key(source, study)].push(image);
        }
        _pieceHashes[key][index] = pieceHash;
        known.stored += 1;
        known.size += uint64(data.length);
        _keep(key, source, image, index, data);
        if (first) emit ImageOpened(source, study, image);
        emit PieceStored(source, image, index, pieceHash);
    }

    function _checkNew(Image storage known, bytes32 study, bytes32 image, uint32 index, uint256 length) private view {
        if (image == 0 || study == 0) revert ZeroId();
        if (length == 0) revert EmptyPiece(image, index);
        if (index >= PIECES_MAX) revert IndexTooHigh(index);
        if (known.pieces != 0) revert AlreadySealed(image);
        if (known.stored != 0 && known.study != study) revert StudyDiffers(image, study);
    }

    function _seal(address source, bytes32 image, uint32 pieces, bytes32 root) private {
        bytes32 key = _key(source, image);
        Image storage known = _images[key];
        if (known.pieces != 0) {
            if (known.pieces != pieces || known.root != root) revert AlreadySealed(image);
            return;
        }
        if (pieces == 0 || known.stored != pieces) revert CountDiffers(image, known.stored, pieces);
        uint32 folded = known.folded;
        if (folded < pieces && pieces - folded > SEAL_PIECES_MAX) revert FoldFirst(image, folded, pieces);
        bytes32 computed = _fullRoot(key, image, folded, pieces);
        if (computed != root) revert RootDiffers(image, computed);
        known.pieces = pieces;
        known.root = root;
        emit ImageSealed(source, image, pieces, known.size, root);
    }

    /// @dev Root over the chunk roots: stored ones below `folded`, computed ones above.
    function _fullRoot(bytes32 key, bytes32 image, uint32 folded, uint32 pieces) private view returns (bytes32) {
        uint256 chunks = (uint256(pieces) + CHUNK_PIECES - 1) / CHUNK_PIECES;
        bytes32[] memory nodes = new bytes32[](chunks);
        for (uint256 i = 0; i < chunks; ++i) {
            uint256 first = i * CHUNK_PIECES;
            uint256 end = first + CHUNK_PIECES < pieces ? first + CHUNK_PIECES : pieces;
            nodes[i] = first < folded ? _chunkRoots[key][i] : _rootOf(key, image, first, end);
        }
        return _reduce(nodes);
    }

    /// @dev Root over the pieces from `first` to before `end`; all must be stored.
    function _rootOf(bytes32 key, bytes32 image, uint256 first, uint256 end) private view returns (bytes32) {
        bytes32[] memory nodes = new bytes32[](end - first);
        mapping(uint256 => bytes32) storage hashes = _pieceHashes[key];
        for (uint256 i = first; i < end; ++i) {
            bytes32 pieceHash = hashes[i];
            if (pieceHash == 0) revert PieceMissing(image, uint32(i));
            nodes[i - first] = EfficientHashLib.hash(pieceHash);
        }
        return _reduce(nodes);
    }

    /// @dev Pairs neighbours level by level, in place; an odd last node goes up unchanged.
    function _reduce(bytes32[] memory nodes) private pure returns (bytes32) {
        uint256 n = nodes.length;
        while (n > 1) {
            uint256 pairs = n / 2;
            for (uint256 i = 0; i < pairs; ++i) {
                nodes[i] = EfficientHashLib.hash(nodes[2 * i], nodes[2 * i + 1]);
            }
            if (n % 2 == 1) nodes[pairs] = nodes[n - 1];
            n = pairs + (n % 2);
        }
        return nodes[0];
    }
}
