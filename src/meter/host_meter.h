// HostMeter: integrates the host's energy over its sensors and the load model, and charges runs their share.
#pragma once

#include <memory>
#include <vector>

#include "frugal/meter.h"
#include "meter/host_state.h"
#include "meter/power_model.h"
#include "meter/sensor.h"

namespace frugal::meter {

using Sensors = std::vector<std::unique_ptr<EnergySensor>>;

std::unique_ptr<PowerMeter> make_host_meter(MeterOptions options, SourceInfo source, PowerModel model,
                                            Sensors sensors, std::unique_ptr<StateKeeper> state);

}  // namespace frugal::meter
