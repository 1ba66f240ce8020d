-- `steps` puts this before the scripts that compare xacts.
--
-- Whether xact `a` is lower than `b`. Xacts are 64-bit numbers as text, because Lua's own numbers are exact to 2^53 only.
local function below(a, b) return #a < #b or (#a == #b and a < b) end
