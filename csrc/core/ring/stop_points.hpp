// SPDX-License-Identifier: MIT
// Where a test may stop a thread inside the protocol. Nothing at all in any other build.
#pragma once

namespace fastreplay {

enum class StopPoint {
  kGatePassed,    // a writer saw the lap gate open, and has not reserved yet
  kReserved,      // it holds tickets, and has written nothing
  kFieldWritten,  // one field of one or more of its records is written
  kRowsWritten,   // all are, and none is published
  kRowPublished,  // one more lap word is stored
  kAllPublished,  // all are, and commit was not moved yet
  kHelping,       // somebody saw finished tickets, and has not moved commit over them yet
  kCommitRead,    // a reader read commit, and has not read head yet
  kWindowTaken,   // it has its window
  kRowDrawn,      // it drew a ticket that is published
  kFieldCopied,   // one field of one or more records is copied
  kRowsCopied,    // all are, and head was not read again yet
  kLeafStored,    // the leaf of a reserved ticket is there, and the ticket is not published
  kLeafRead,      // an update read a leaf, and has not changed it yet
};

#if defined(FASTREPLAY_STOP_POINTS)
void at_stop_point(StopPoint point) noexcept;  // the test's
#else
constexpr void at_stop_point(StopPoint) noexcept {}
#endif

}  // namespace fastreplay
