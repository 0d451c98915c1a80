// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {Base} from "./Base.sol";
import {Validators} from "../solidity/Validators.sol";

/// @dev A network of four sites with three keys each, whose state lies in its slots as in a first block. Of twelve nodes ten have a seat:
/// three at the first two sites, two at the others.
abstract contract ValidatorsBase is Base {
    uint256 internal constant EPOCH = 100;
    uint256 internal constant SEATS = 10;
    uint256 internal constant CAP = 50;
    uint256 internal constant SITES = 4;
    uint256 internal constant KEYS = 3;

    Validators internal validators;

    function setUp() public virtual override {
        super.setUp();
        _enrol(104);
        _enrol(105);
        _found(address(sources));
    }

    /// @dev The key of the site's account.
    function _siteKey(uint256 site) internal pure returns (uint256) {
        return site < 2 ? 101 + site : 102 + site;
    }

    function _site(uint256 site) internal pure returns (address) {
        return vm.addr(_siteKey(site));
    }

    /// @dev The key of a node of a site.
    function _nodeKey(uint256 site, uint256 node) internal pure returns (uint256) {
        return 10_000 + 100 * site + node;
    }

    function _node(uint256 site, uint256 node) internal pure returns (address) {
        return vm.addr(_nodeKey(site, node));
    }

    function _put(bytes32 slot, uint256 value) private {
        vm.store(address(validators), slot, bytes32(value));
    }

    function _at(bytes32 start, uint256 index) private pure returns (bytes32) {
        return bytes32(uint256(keccak256(abi.encode(start))) + index);
    }

    /// @dev As the program that makes first blocks does it: with code and slots alone.
    function _found(address registry) internal {
        validators = new Validators();
        _put(bytes32(0), uint256(uint160(registry)));
        _put(bytes32(uint256(1)), EPOCH);
        _put(bytes32(uint256(2)), SEATS);
        _put(bytes32(uint256(3)), CAP);
        bytes32 list = bytes32(uint256(5));
        bytes32 sites = bytes32(uint256(6));
        uint256 seat;
        for (uint256 i = 0; i < SITES; ++i) {
            _put(_at(sites, i), uint160(_site(i)));
            bytes32 keys = keccak256(abi.encode(_site(i), uint256(7)));
            _put(keys, KEYS);
            for (uint256 k = 0; k < KEYS; ++k) {
                _put(_at(keys, k), uint160(_node(i, k)));
                _put(keccak256(abi.encode(_node(i, k), uint256(8))), uint160(_site(i)));
                if (i < 2 || k < 2) _put(_at(list, seat++), uint160(_node(i, k)));
            }
        }
        _put(sites, SITES);
        _put(list, seat);
    }

    function _proof(uint256 key, address site) internal view returns (bytes memory) {
        bytes32 message = keccak256(abi.encode(keccak256("ServeSite(address site)"), site));
        bytes32 domain = _domainOf("PACS Bridge Validators", address(validators));
        return _sign(key, keccak256(abi.encodePacked("\x19\x01", domain, message)));
    }

    /// @dev Keys with numbers from `first` on, and their proofs.
    function _keys(uint256 first, uint256 count, address site)
        internal
        view
        returns (address[] memory keys, bytes[] memory proofs)
    {
        keys = new address[](count);
        proofs = new bytes[](count);
        for (uint256 i = 0; i < count; ++i) {
            keys[i] = vm.addr(first + i);
            proofs[i] = _proof(first + i, site);
        }
    }

    function _register(address site, uint256 first, uint256 count) internal {
        (address[] memory keys, bytes[] memory proofs) = _keys(first, count, site);
        vm.prank(site);
        validators.register(keys, proofs);
    }

    function _toEpoch(uint256 epoch) internal {
        vm.roll(epoch * EPOCH);
    }

    /// @dev How many of the list are registered by `site`.
    function _seatsOf(address site) internal view returns (uint256 count) {
        address[] memory list = validators.getValidators();
        for (uint256 i = 0; i < list.length; ++i) {
            if (validators.siteOf(list[i]) == site) ++count;
        }
    }

    function _define(address source, uint256 count) internal {
        uint256 before = studies.stakeOf(source);
        for (uint256 i = before; i < before + count; ++i) {
            _defineStudy(source, keccak256(abi.encode(source, i)));
        }
    }
}
