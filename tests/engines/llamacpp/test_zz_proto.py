import torch
def test_it(tiny_llama, tiny_hf, content, tiny_model):
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    for kind in ("llama","qwen3"):
      ours, theirs = tiny_llama(kind,"f32"), tiny_hf(kind)
      p=content(theirs,"The old mill is run by Anna. It was calm.")
      one=content(theirs,"T")
      exact=ours.logits(p), ours.logits(one)
      before=theirs._model.config._attn_implementation
      for name,which in (("none",""),("v","v"),("kv","kv"),("qkv","qkv")):
        def f(module,q,k,v,mask,which=which,**kw):
            h=lambda t:t.half().float()
            if "q" in which:q=h(q)
            if "k" in which:k=h(k)
            if "v" in which:v=h(v)
            return sdpa_attention_forward(module,q,k,v,mask,**kw)
        AttentionInterface.register("half"+name,f)
        theirs._model.set_attn_implementation("half"+name)
        print(kind,name,(exact[0]-theirs.logits(p)).abs().max().item(),(exact[1]-theirs.logits(one)).abs().max().item())
      theirs._model.set_attn_implementation(before)
