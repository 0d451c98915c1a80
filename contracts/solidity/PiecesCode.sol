// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {SSTORE2} from "solady/src/utils/SSTORE2.sol";
import {IPiecesReadable} from "./interfaces/IPieces.sol";
import {PiecesBase} from "./PiecesBase.sol";

/// @title Pieces kept as contract code
/// @notice See {IPieces}. The paper's storePiece and loadPiece at about a third of its cost: 222 gas per byte. A piece is cut into
/// data contracts of at most 24,575 bytes, each with a leading STOP so that it can never run.
contract PiecesCode is PiecesBase, IPiecesReadable {
    /// @notice Bytes in one data contract: the code size limit of EIP-170 less the leading STOP.
    uint256 public constant PART_BYTES_MAX = 24_575;

    /// @dev The first part shares its slot with the length; most pieces need only one or two parts.
    struct Kept {
        address firstPart;
        uint64 length;
    }

    mapping(bytes32 imageKey => mapping(uint256 index => Kept)) private _kept;
    mapping(bytes32 imageKey => mapping(uint256 index => mapping(uint256 part => address))) private _furtherParts;

    constructor(address registry) PiecesBase(registry) {}

    function loadPiece(address source, bytes32 image, uint32 index) external view returns (bytes memory data) {
        bytes32 key = _key(source, image);
        Kept storage kept = _kept[key][index];
        uint256 length = kept.length;
        if (length == 0) revert PieceUnknown(image, index);
        data = SSTORE2.read(kept.firstPart);
        for (uint256 part = 1; part * PART_BYTES_MAX < length; ++part) {
            data = bytes.concat(data, SSTORE2.read(_furtherParts[key][index][part]));
        }
    }

    function _keep(bytes32 key, address, bytes32, uint32 index, bytes calldata data) internal override {
        for (uint256 part = 0; part * PART_BYTES_MAX < data.length; ++part) {
            uint256 start = part * PART_BYTES_MAX;
            uint256 end = start + PART_BYTES_MAX < data.length ? start + PART_BYTES_MAX : data.length;
            address pointer = SSTORE2.write(data[start:end]);
            if (part == 0) _kept[key][index] = Kept(pointer, uint64(data.length));
            else _furtherParts[key][index][part] = pointer;
        }
    }
}
