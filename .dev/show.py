import json,sys
r=json.load(open(sys.argv[1])); metric=sys.argv[2] if len(sys.argv)>2 else 'ssim'
t={}
for w in r['rows']:
    if w['metric']==metric:
        k=(w['link'],w['attack']); m=[s['mean'] for s in w['seeds'].values() if s]
        t.setdefault(k,{})[w['snr_db']]=(sum(m)/len(m) if m else None)
for k,v in t.items(): print(f"{k[0]:32}{str(k[1]):14}"," ".join(f"{s:g}:{x:.3f}" if x is not None else f"{s:g}:-" for s,x in v.items()))
