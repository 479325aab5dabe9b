-- Health of an LLMEngine: docs/llmengine.md, "Conditions"
-- It uses no library, so that it runs from argocd-cm without useOpenLibs.
local hs = { status = "Progressing", message = "Waiting for the operator" }
if obj.status == nil or obj.status.conditions == nil then
  return hs
end
if obj.status.observedGeneration ~= obj.metadata.generation then
  hs.message = "Waiting for the operator to see the newest spec"
  return hs
end
for _, condition in ipairs(obj.status.conditions) do
  if condition.type == "Ready" then
    hs.message = condition.reason
    if condition.message ~= nil and condition.message ~= "" then
      hs.message = condition.reason .. ": " .. condition.message
    end
    if condition.status == "True" then
      hs.status = "Healthy"
    elseif condition.status == "False" then
      -- False comes together with Stalled only: nothing moves until somebody acts.
      hs.status = "Degraded"
    elseif condition.reason == "Suspended" then
      hs.status = "Suspended"
    end
  end
end
return hs
