// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {ECDSA} from "solady/src/utils/ECDSA.sol";
import {Signed} from "./Signed.sol";
import {ISources} from "./interfaces/ISources.sol";
import {IValidators} from "./interfaces/IValidators.sol";

/// @title Validators
/// @notice See {IValidators}.
/// @dev It is in the first block, so no constructor ever runs: who makes the block writes the state into these slots.
///
/// | slot | what | written |
/// |---|---|---|
/// | 0 | `registry` | first block |
/// | 1 | `epochBlocks`, at least 1 | first block |
/// | 2 | `seats`, 1 to `SEATS_MAX` | first block |
/// | 3 | `stakeCap` | first block |
/// | 4 | `lastEpoch` | 0 at first |
/// | 5 | length of the list of validators; element i at keccak256(5) + i | first block, roll |
/// | 6 | number of sites; site i at keccak256(6) + i | first block, register, roll |
/// | 7 | length of the keys of a site at s = keccak256(site ‖ 7); key i at keccak256(s) + i | first block, register, roll |
/// | 8 | the site of a key at keccak256(key ‖ 8) | first block, register, roll |
/// | 9 | at keccak256(site ‖ 9): credited in the lower 64 bits, stake seen in the next 64 | roll |
///
/// Sites in slot 6 are those with keys in slot 7. Slots 5 and 6 are never empty.
contract Validators is IValidators, Signed {
    /// @notice Most seats: every validator answers every other one in each block.
    uint256 public constant SEATS_MAX = 64;
    /// @notice Most sites at a time: a roll asks the registry about each.
    uint256 public constant SITES_MAX = 32;
    /// @notice Most keys of a site.
    uint256 public constant KEYS_MAX = 16;
    /// @notice From so many sites on each has less than a third of the seats.
    uint256 public constant SITES_FOR_THIRD = 4;

    bytes32 private constant SERVE_SITE = keccak256("ServeSite(address site)");

    /// @dev One slot.
    struct Standing {
        uint64 credited;
        uint64 seen;
    }

    address public registry;
    uint256 public epochBlocks;
    uint256 public seats;
    uint256 public stakeCap;
    uint256 public lastEpoch;
    address[] private _validators;
    address[] private _sites;
    mapping(address site => address[] keys) private _keysOf;
    mapping(address key => address site) public siteOf;
    mapping(address site => Standing) public standingOf;

    function register(address[] calldata keys, bytes[] calldata proofs) external {
        if (keys.length > KEYS_MAX) revert TooManyKeys(keys.length);
        if (keys.length != proofs.length) revert ProofsDiffer(keys.length, proofs.length);
        if (!_registry().isActive(msg.sender)) revert NotActive(msg.sender);
        bool isNew = _keysOf[msg.sender].length == 0;
        _forget(msg.sender);
        if (keys.length == 0) {
            if (!isNew) _strike(msg.sender);
        } else if (isNew) {
            if (_sites.length == SITES_MAX) revert TooManySites();
            _sites.push(msg.sender);
        }
        bytes32 digest = _hashTypedData(keccak256(abi.encode(SERVE_SITE, msg.sender)));
        for (uint256 i = 0; i < keys.length; ++i) {
            _take(keys[i], digest, proofs[i]);
        }
        emit KeysRegistered(msg.sender, keys);
    }

    function roll() external returns (bool rolled) {
        uint256 epoch = block.number / epochBlocks;
        if (epoch <= lastEpoch) return false;
        ISources sources = _registry();
        lastEpoch = epoch;
        _removeSuspended(sources);
        _credit(sources);
        _seat();
        emit Rolled(epoch, _validators);
        return true;
    }

    function getValidators() external view returns (address[] memory) {
        return _validators;
    }

    function getSites() external view returns (address[] memory) {
        return _sites;
    }

    function keysOf(address site) external view returns (address[] memory) {
        return _keysOf[site];
    }

    function apportion(uint256[] memory weights, uint256[] memory keys, uint256 most)
        public
        pure
        returns (uint256[] memory given)
    {
        if (weights.length != keys.length || weights.length == 0) revert BadSites();
        for (uint256 i = 0; i < keys.length; ++i) {
            if (keys[i] == 0 || weights[i] == 0) revert BadSites();
        }
        if (weights.length < SITES_FOR_THIRD) return _equal(keys, most);
        uint256 total = _fillable(keys, most);
        return _byQuota(weights, _limits(keys, total), total);
    }

    /// @dev The fewest keys of any, or an equal part of the seats.
    function _equal(uint256[] memory keys, uint256 most) private pure returns (uint256[] memory given) {
        uint256 each = most / keys.length;
        for (uint256 i = 0; i < keys.length; ++i) {
            if (keys[i] < each) each = keys[i];
        }
        if (each == 0) each = 1;
        given = new uint256[](keys.length);
        for (uint256 i = 0; i < keys.length; ++i) {
            given[i] = each;
        }
    }

    /// @dev The largest number of seats that can be filled. Ends at four: each site may have one then, and has a key.
    function _fillable(uint256[] memory keys, uint256 most) private pure returns (uint256 total) {
        total = most > SEATS_MAX ? SEATS_MAX : most;
        for (; total > SITES_FOR_THIRD; --total) {
            uint256[] memory limits = _limits(keys, total);
            uint256 room;
            for (uint256 i = 0; i < limits.length; ++i) {
                room += limits[i];
            }
            if (room >= total) return total;
        }
        return SITES_FOR_THIRD;
    }

    /// @dev No more than keys, and less than a third.
    function _limits(uint256[] memory keys, uint256 total) private pure returns (uint256[] memory limits) {
        uint256 third = (total - 1) / 3;
        limits = new uint256[](keys.length);
        for (uint256 i = 0; i < keys.length; ++i) {
            limits[i] = keys[i] < third ? keys[i] : third;
        }
    }

    /// @dev `total` is at most the sum of `limits`. A quota that reaches its limit is whole; every other is below its limit, which is
    /// whole, so that one more for the remainder does not exceed it.
    function _byQuota(uint256[] memory weights, uint256[] memory limits, uint256 total)
        private
        pure
        returns (uint256[] memory given)
    {
        uint256 count = weights.length;
        given = new uint256[](count);
        uint256[] memory remainders = new uint256[](count);
        (uint256 left, uint256 weight) = _atLimit(weights, limits, total, given);
        uint256 spare = left;
        for (uint256 i = 0; i < count; ++i) {
            if (given[i] != 0) continue;
            given[i] = weights[i] * left / weight;
            remainders[i] = weights[i] * left % weight;
            spare -= given[i];
        }
        // Remainders are parts of `weight` and add up to `spare` times it, so more of them than `spare` are above zero, unless it is none.
        for (; spare > 0; --spare) {
            uint256 largest;
            for (uint256 i = 1; i < count; ++i) {
                if (remainders[i] > remainders[largest]) largest = i;
            }
            ++given[largest];
            remainders[largest] = 0;
        }
    }

    /// @dev Fills the sites whose quota reaches their limit, and says how many seats are left for the weight of the others. Who is filled
    /// leaves more for each of the others, so it goes round until nobody is; each round but the last fills one.
    function _atLimit(uint256[] memory weights, uint256[] memory limits, uint256 total, uint256[] memory given)
        private
        pure
        returns (uint256 left, uint256 weight)
    {
        left = total;
        for (uint256 i = 0; i < weights.length; ++i) {
            weight += weights[i];
        }
        for (bool again = true; again;) {
            again = false;
            for (uint256 i = 0; i < weights.length; ++i) {
                if (given[i] != 0 || weights[i] * left < limits[i] * weight) continue;
                given[i] = limits[i];
                left -= limits[i];
                weight -= weights[i];
                again = true;
            }
        }
    }

    /// @dev Reverts where there is none yet: a call to an account without code would tell nothing about sites.
    function _registry() private view returns (ISources) {
        address known = registry;
        if (known.code.length == 0) revert RegistryMissing(known);
        return ISources(known);
    }

    /// @dev Makes `key` the caller's, if it agrees. Without its word a site could take the key of another one's new validator first.
    function _take(address key, bytes32 digest, bytes calldata proof) private {
        address holder = siteOf[key];
        if (holder != address(0)) revert KeyInUse(key, holder);
        // Zero is what a signature that is none recovers to.
        if (key == address(0) || ECDSA.tryRecoverCalldata(digest, proof) != key) revert BadProof(key);
        siteOf[key] = msg.sender;
        _keysOf[msg.sender].push(key);
    }

    /// @dev Frees the keys of a site.
    function _forget(address site) private {
        address[] storage keys = _keysOf[site];
        for (uint256 i = keys.length; i > 0; --i) {
            delete siteOf[keys[i - 1]];
            keys.pop();
        }
    }

    /// @dev Takes a site off the list, which keeps its order: it decides between equals.
    function _strike(address site) private {
        uint256 count = _sites.length;
        if (count == 1) revert LastSite(site);
        bool found;
        for (uint256 i = 0; i < count; ++i) {
            if (found) _sites[i - 1] = _sites[i];
            else found = _sites[i] == site;
        }
        _sites.pop();
    }

    /// @dev If all are suspended nobody is taken off: somebody must make the blocks in which that can be undone.
    function _removeSuspended(ISources sources) private {
        address[] memory sites = _sites;
        bool[] memory suspended = new bool[](sites.length);
        uint256 remaining;
        for (uint256 i = 0; i < sites.length; ++i) {
            suspended[i] = sources.isSuspended(sites[i]);
            if (!suspended[i]) ++remaining;
        }
        if (remaining == 0) return;
        for (uint256 i = 0; i < sites.length; ++i) {
            if (!suspended[i]) continue;
            _forget(sites[i]);
            _strike(sites[i]);
            emit SiteRemoved(sites[i]);
        }
    }

    function _credit(ISources sources) private {
        address[] memory sites = _sites;
        uint256 cap = stakeCap;
        for (uint256 i = 0; i < sites.length; ++i) {
            Standing storage standing = standingOf[sites[i]];
            uint64 stake = uint64(sources.stakeOf(sites[i]));
            uint256 grown = stake - standing.seen;
            if (grown == 0) continue;
            uint64 credit = uint64(grown < cap ? grown : cap);
            standing.seen = stake;
            standing.credited += credit;
            emit StakeCredited(sites[i], credit, stake);
        }
    }

    function _seat() private {
        address[] memory sites = _sites;
        uint256[] memory weights = new uint256[](sites.length);
        uint256[] memory keys = new uint256[](sites.length);
        for (uint256 i = 0; i < sites.length; ++i) {
            weights[i] = uint256(standingOf[sites[i]].credited) + 1;
            keys[i] = _keysOf[sites[i]].length;
        }
        uint256[] memory given = apportion(weights, keys, seats);
        uint256 next;
        uint256 before = _validators.length;
        for (uint256 i = 0; i < sites.length; ++i) {
            for (uint256 k = 0; k < given[i]; ++k) {
                address key = _keysOf[sites[i]][k];
                if (next == before) {
                    _validators.push(key);
                    ++before;
                } else if (_validators[next] != key) {
                    _validators[next] = key;
                }
                ++next;
            }
        }
        for (; before > next; --before) {
            _validators.pop();
        }
    }

    function _domainNameAndVersion() internal pure override returns (string memory, string memory) {
        return ("PACS Bridge Validators", "1");
    }
}
