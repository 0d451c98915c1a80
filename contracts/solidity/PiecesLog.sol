// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {PiecesBase} from "./PiecesBase.sol";

/// @title Pieces kept as event data
/// @notice See {IPieces}. For readers that can only ask for logs: about 25 gas per byte, and every node keeps the bytes twice,
/// as input and as log.
contract PiecesLog is PiecesBase {
    /// @notice The bytes of piece `index` of `image`.
    event PieceBytes(address indexed source, bytes32 indexed image, uint32 indexed index, bytes data);

    constructor(address registry) PiecesBase(registry) {}

    function _keep(bytes32, address source, bytes32 image, uint32 index, bytes calldata data) internal override {
        emit PieceBytes(source, image, index, data);
    }
}
