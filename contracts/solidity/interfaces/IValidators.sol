// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

/// @title Validators: the seats of a QBFT network, by stake
/// @notice Besu asks `getValidators` at every block, on the state after its parent, who may propose and seal it. Here sites hold *seats*
/// in proportion to their *stake*, which is the number of studies that they defined in the registry (Patel 2018), and each seat is one
/// validator of the list.
///
/// - A site is a source of the registry. It registers the accounts of its validators, each of which agrees by its signature.
/// - Time is cut into epochs of so many blocks. The list changes at most once in an epoch, with the first `roll` in it, which anybody may
///   send. Without it nothing changes.
/// - At a roll, what a site's stake grew by since the last one is credited to it, up to a cap. What is above the cap is never credited:
///   keys of patients are free, so studies can be made up as fast as blocks take them.
/// - The weight of a site is what it was credited, and one more, so that a new network works at all.
/// - Seats are given by largest remainder, see `apportion`. With four sites or more each has less than a third of them, so that any one site
///   can be away, or lie, and blocks go on. With fewer sites that cannot be: of three, one has a third or more, whatever is done. They have
///   equal numbers then, which is the least that the largest can have, and stake decides nothing.
///
/// Inconvenient facts:
/// - It lies in the first block, with what it is told about the network, and cannot be changed or paused.
/// - The consortium admin can suspend every source, and so take its seats at the next roll. It cannot give any.
/// - Sites of the first block have seats before they are admitted to the registry, and as long as nobody suspends them.
/// - A suspended site is taken off with its keys. Reinstated, it registers again. What it was credited stays.
/// - A key that was replaced keeps its seat until the next roll.
/// - Whoever runs validators of more than a third of the seats can stop the network, and then `roll` does not come either.
/// - A site may register keys that nobody runs. If more than a third of the seats are of such keys, no block follows.
interface IValidators {
    /// @notice `site` registered `keys` in place of those it had. None: it withdrew.
    event KeysRegistered(address indexed site, address[] keys);
    /// @notice `site` is suspended in the registry and was taken off.
    event SiteRemoved(address indexed site);
    /// @notice `site` was credited `credit` more; its stake was `stake`.
    event StakeCredited(address indexed site, uint64 credit, uint64 stake);
    /// @notice From the next block of `epoch` on, `validators` propose and seal.
    event Rolled(uint256 indexed epoch, address[] validators);

    /// @notice The registry has not been deployed.
    error RegistryMissing(address registry);
    /// @notice `site` is not an active source of the registry.
    error NotActive(address site);
    /// @notice More keys than a site may have.
    error TooManyKeys(uint256 count);
    /// @notice There are as many sites as there can be.
    error TooManySites();
    /// @notice The last site cannot withdraw.
    error LastSite(address site);
    /// @notice There is not one signature for each key.
    error ProofsDiffer(uint256 keys, uint256 proofs);
    /// @notice `key` is a validator of `site` already.
    error KeyInUse(address key, address site);
    /// @notice `key` did not sign that it serves the site.
    error BadProof(address key);
    /// @notice There is not one number of keys for each weight, or a site without any.
    error BadSites();

    /// @notice Registers the accounts of the caller's validators in place of those it had, in the order in which they get its seats. Source
    /// identity only. `proofs[i]` is the signature of key i over `ServeSite(address site)` in the domain of this contract, 65 bytes. Without
    /// keys the caller withdraws. Counts from the next roll on.
    function register(address[] calldata keys, bytes[] calldata proofs) external;
    /// @notice Credits stake and distributes the seats, once in an epoch. Anybody may call.
    /// @return rolled Whether it was the first in this epoch; otherwise it did nothing.
    function roll() external returns (bool rolled);

    /// @notice Who may propose and seal the next block: never empty, nobody twice.
    function getValidators() external view returns (address[] memory);
    /// @notice The sites that have registered keys. Where weights are equal, the earlier one goes before.
    function getSites() external view returns (address[] memory);
    /// @notice The keys of `site`, as registered.
    function keysOf(address site) external view returns (address[] memory);
    /// @notice The site that registered `key`; zero if none.
    function siteOf(address key) external view returns (address site);
    /// @notice What `site` has been credited, and its stake when that was done last.
    function standingOf(address site) external view returns (uint64 credited, uint64 seen);
    /// @notice The registry whose sources are sites.
    function registry() external view returns (address);
    /// @notice Blocks of an epoch.
    function epochBlocks() external view returns (uint256);
    /// @notice Most seats there are.
    function seats() external view returns (uint256);
    /// @notice Most stake that is credited to a site at a roll.
    function stakeCap() external view returns (uint256);
    /// @notice The epoch of the last roll.
    function lastEpoch() external view returns (uint256);
    /// @notice Distributes at most `most` seats among sites with these weights and numbers of keys.
    ///
    /// Four sites or more: the number of seats is the largest, up to `most`, that can be filled while each site has less than a third of
    /// them and no more than it has keys; four can always be. A site's quota is its share of the seats by weight, but not more than it may
    /// have; what is above that goes to the others, by weight. Each gets the whole part of its quota, and those with the largest
    /// remainders one more. Who gains weight while the others stay never loses a seat.
    ///
    /// Fewer sites: each has as many as the one with the fewest keys, if there are so many seats, and at least one.
    function apportion(uint256[] memory weights, uint256[] memory keys, uint256 most)
        external
        pure
        returns (uint256[] memory given);
}
