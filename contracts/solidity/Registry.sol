// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {Sources} from "./Sources.sol";
import {Studies} from "./Studies.sol";

/// @title Registry
/// @notice {ISources} and {IStudies} at one address.
contract Registry is Studies {
    constructor(address firstAdmin) Sources(firstAdmin) {}
}
