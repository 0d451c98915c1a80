// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {IPiecesReadable} from "./interfaces/IPieces.sol";
import {PiecesBase} from "./PiecesBase.sol";

/// @title Pieces kept in storage slots
/// @notice See {IPieces}. The paper's own way, kept for reference and comparison: 712 gas per byte, so that a piece of 30,000 bytes
/// fills a whole block of 30 million gas and exceeds the transaction limit of EIP-7825.
contract PiecesStorage is PiecesBase, IPiecesReadable {
    mapping(bytes32 imageKey => mapping(uint256 index => bytes)) private _kept;

    constructor(address registry) PiecesBase(registry) {}

    function loadPiece(address source, bytes32 image, uint32 index) external view returns (bytes memory data) {
        data = _kept[_key(source, image)][index];
        if (data.length == 0) revert PieceUnknown(image, index);
    }

    function _keep(bytes32 key, address, bytes32, uint32 index, bytes calldata data) internal override {
        _kept[key][index] = data;
    }
}
