// SPDX-License-Identifier: MIT
#include "ring/ring.hpp"

#include "ring/protocol.hpp"
#include "ring/unshared.hpp"

namespace fastreplay {

template class BasicRing<StdAtomics>;

}  // namespace fastreplay
